# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium of this machine, driven by Playwright; nothing is downloaded."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

# A loop of fixed length between frames, and the milliseconds of a core that it takes (Node.js).
# Where it takes longer, so may everything: limits of time grow by the same ratio, and are as
# stated on a machine with nothing beside.
_LOOP = """async () => {
  const taken = [];
  for (let round = 0; round < 23; round++) {
    await new Promise(requestAnimationFrame);
    const started = performance.now();
    let x = 1;
    for (let i = 0; i < 3e6; i++) x = (Math.imul(x, 31) + i) | 0;
    taken.push(performance.now() - started + (x & 0));
  }
  return taken.slice(2);
}"""
_LOOP_MS = 3.4

# Whether a page is no wider than its window.
READABLE = "document.documentElement.scrollWidth <= innerWidth"

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 780}


def find_chromium() -> str | None:
    """The browser that $CHROMIUM names, or the first that is installed."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


needs_chromium = pytest.mark.skipif(
    find_chromium() is None,
    reason="no Chromium is installed (apt-get install chromium, or name one in $CHROMIUM)",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """Yields a Playwright browser with a profile of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=list(_FLAGS), timeout=120_000
        )
        yield browser
        browser.close()


class Visit:
    """A page that was opened from its file, and all that it did beside showing itself.

    Attributes:
      page: Playwright's.
      requests: addresses that were asked for, without the file itself.
      complaints: what stands in the console as a warning or an error, and exceptions.
    """

    def __init__(self, context: Any, path: Path):
        self.page: Any = context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.set_default_timeout(120_000)
        address = path.resolve().as_uri()
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(address)
        if self.page.evaluate("document.documentElement.classList.contains('scripted')"):
            self.until(
                "!document.querySelector('#rows') || document.querySelector('#rows tr') "
                "|| document.querySelector('#found').textContent"
            )
        self.requests.remove(address)

    def _hear(self, message: Any) -> None:
        if message.type in ("warning", "error"):
            self.complaints.append(message.text)

    def until(self, condition: str) -> None:
        """Waits until a JavaScript expression holds.

        Playwright's own `wait_for_function` evaluates a string in the page, which its policy
        forbids.
        """
        frame = "new Promise(requestAnimationFrame)"
        self.page.evaluate(f"async () => {{ while (!({condition})) await {frame}; }}")

    def open(self, number: int) -> None:
        """Opens a row of the list; 1 is the first."""
        self.page.click(f"#rows tr:nth-child({number}) .open")
        self.page.wait_for_selector("dialog[open] .head")

    def slowness(self) -> float:
        """How many times slower than said above the machine is just now; 1 or more."""
        return max(1.0, median(self.page.evaluate(_LOOP)) / _LOOP_MS)


@contextmanager
def visit(browser: Any, path: Path, **how: Any) -> Iterator[Visit]:
    """Yields a visit in a fresh context; `how` is of Playwright's `new_context`."""
    context = browser.new_context(**{"viewport": WIDE, **how})
    yield Visit(context, path)
    context.close()
