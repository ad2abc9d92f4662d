# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Texts that are meant to do harm, in report.html in a headless Chromium."""

from pathlib import Path

import pytest
from support.chromium import READABLE, needs_chromium, visit
from support.report_runs import (
    HOSTILE,
    add_analysis,
    hostile_row,
    make_run,
    write_rows_in_ascii,
)

from stepalign_jax.base.files import write_json
from stepalign_jax.report.run_page import write_run_report

pytestmark = [needs_chromium, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which everything that can be written is meant to do harm."""
    rows = [hostile_row(text) for text in HOSTILE]
    long = "<b>" + "0123456789" * 100_000
    rows.append({**hostile_row("x"), "rollout": long, "context": long + "1", "ends": None})
    name = "<img src=x onerror=window.harm=1>"
    where = tmp_path_factory.mktemp("runs") / name
    run = make_run(where, [[hostile_row("x")]], **{f"context_failed/{name}": 1.0})
    write_rows_in_ascii(run.rollouts_file(0), rows)
    prompts = {
        role: HOSTILE[0] + HOSTILE[2] + HOSTILE[3] for role in ("solver", "teacher", "critic")
    }
    write_json(run.prompts_file, prompts)
    write_json(run.preflight_file, {"warnings": [HOSTILE[0], HOSTILE[6]]})
    add_analysis(run, name, [hostile_row(HOSTILE[0]), hostile_row(HOSTILE[6])])
    return write_run_report(run)


def test_hostile_texts_are_text(browser, hostile):
    with visit(browser, hostile) as seen:
        page = seen.page
        for number, text in enumerate(HOSTILE, start=1):
            seen.open(number)
            drawn = page.evaluate("document.querySelector('#viewer .pair .cell').textContent")
            assert drawn == as_shown(f"Step 1: {text}↵\nAnswer: {text}")
            page.keyboard.press("Escape")
            page.wait_for_selector("dialog", state="hidden")
        page.fill("#search", "</script>")
        seen.until("document.querySelector('#found').textContent === '2 rollouts'")
        page.select_option("#source", index=1)
        assert page.evaluate("window.harm") is None
        assert page.locator("img, iframe, object, embed, form[action], [onerror]").count() == 0
        links = page.evaluate(
            "[...document.querySelectorAll('[href]')].map(e => e.getAttribute('href'))"
        )
        assert all(link.startswith("#") or link == "data:," for link in links)
        assert not set("\u202e\u2067\x00") & set(page.evaluate("document.body.innerText"))
        assert (seen.requests, seen.complaints) == ([], [])


def as_shown(text: str) -> str:
    """What the page makes of a text: signs that hide or turn others around are named."""
    named = "\u202e\u202c\u2067\u2069\u200b\x00\x1b\ud835\u200d"
    return "".join(f"U+{ord(c):04X}" if c in named else c for c in text)


def test_a_line_of_a_million_characters_opens_and_is_whole_on_demand(browser, hostile):
    with visit(browser, hostile) as seen:
        page = seen.page
        seen.open(len(HOSTILE) + 1)
        assert "Only the first 20,000 characters" in page.text_content(".cut")
        size = "document.querySelector('#viewer .pair:not(.heads) .cell').textContent.length"
        assert page.evaluate(size) == 20_000
        page.click(".cut button")
        assert page.evaluate(size) == 1_000_003
        assert page.locator(".cut").count() == 0 and page.evaluate(READABLE)
