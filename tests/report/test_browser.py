# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""report.html in a headless Chromium, opened from its file."""

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from report.test_report import make_comparison
from support.chromium import PHONE, READABLE, WIDE, needs_chromium, visit
from support.report_runs import make_row, make_run, random_steps

from stepalign_jax.report.comparison_page import write_comparison_report
from stepalign_jax.report.run_page import write_run_report
from stepalign_jax.runs.directory import RunDirectory

pytestmark = [needs_chromium, pytest.mark.timeout(600)]

STRICT = ["serious", "critical"]
PLACES = [(view, colours) for view in (WIDE, PHONE) for colours in ("light", "dark")]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with 10,000 rollouts."""
    run = make_run(tmp_path_factory.mktemp("runs") / "large", random_steps(40, 250))
    return write_run_report(run)


def test_ten_thousand_rollouts_are_small_and_painted_and_opened_at_once(browser, large):
    assert large.stat().st_size <= 10_000_000
    paints, openings, heaps, slow = [], [], [], []
    for _ in range(3):
        with visit(browser, large) as seen:
            page = seen.page
            paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            seen.until(paint.removesuffix(".startTime"))
            paints.append(page.evaluate(paint))
            assert page.text_content("#found") == "10,000 rollouts"
            slow.append(seen.slowness())
            openings += [page.evaluate(TIME_TO_OPEN, place) for place in (0, 7, 20)]
            heaps.append(heap_of(page))
            assert (seen.requests, seen.complaints) == ([], [])
    slower = median(slow)
    assert median(paints) <= 1_000 * slower
    assert median(openings) <= 200 * slower
    assert max(heaps) <= 300_000_000


# From the click to the next frame in which the rollout stands.
TIME_TO_OPEN = """async (place) => {
  document.querySelector('#viewer').close();
  const button = document.querySelectorAll('#rows .open')[place];
  const started = performance.now();
  button.click();
  while (!document.querySelector('#viewer[open] .pairs')) {
    await new Promise(requestAnimationFrame);
  }
  const taken = performance.now() - started;
  if (!document.querySelector('#viewer .pair .t')) throw new Error('no tokens');
  document.querySelector('#viewer').replaceChildren();
  return taken;
}"""


def heap_of(page: Any) -> int:
    """Bytes of JavaScript and of what it holds."""
    session = page.context.new_cdp_session(page)
    usage = session.send("Runtime.getHeapUsage")
    return usage["usedSize"] + usage.get("embedderHeapUsedSize", 0)


def test_searching_ten_thousand_rollouts_finds_what_is_there(browser, large):
    with visit(browser, large) as seen:
        page = seen.page
        page.click("#rows tr:nth-child(3) .open")
        page.wait_for_selector("dialog[open] .pairs")
        title = page.text_content("#viewer .problem")
        page.keyboard.press("Escape")
        page.fill("#search", title)
        seen.until(SEARCHED)
        shown = page.locator("#rows .open").all_text_contents()
        assert shown and all(text == title for text in shown)
        assert heap_of(page) <= 300_000_000
        page.fill("#search", "no such words")
        seen.until("document.querySelector('#found').textContent === '0 rollouts'")
        assert seen.complaints == []


SEARCHED = "!/10,000|searching/.test(document.querySelector('#found').textContent)"


def test_the_list_sorts_filters_and_turns_pages(browser, small):
    with visit(browser, small) as seen:
        page = seen.page

        def column(name: str) -> list[str]:
            return page.locator(f"#rows .c-{name}").all_text_contents()

        assert page.text_content("#at") == "page 1 of 3" and page.is_disabled("#back")
        page.click("#on")
        assert page.text_content("#at") == "page 2 of 3"
        page.click("[data-sort=tokens]")
        lengths = [int(text) for text in column("tokens")]
        assert lengths == sorted(lengths, reverse=True)
        assert page.get_attribute("th.c-tokens", "aria-sort") == "descending"
        page.click("[data-sort=tokens]")
        assert [int(text) for text in column("tokens")] == sorted(map(int, column("tokens")))
        page.click("[data-sort=low]")  # the strongest blame first, and nothing known last
        lowest = [float(text.replace("−", "-")) for text in column("low")]
        assert lowest == sorted(lowest) and lowest[0] < -0.5
        page.select_option("#shown", "wrong")
        assert set(column("correct")) == {"✗ wrong"}
        page.select_option("#shown", "failed")
        assert column("failure") == ["wrong_answer"] and column("mean") == ["–"]


def test_a_rollout_stands_beside_its_critique_with_its_differences(browser, small):
    with visit(browser, small) as seen:
        page = seen.page
        page.select_option("#shown", "wrong")
        seen.open(2)
        steps = page.locator(".pair:not(.heads)")
        kinds = [steps.nth(i).get_attribute("class") for i in range(4)]
        assert kinds == ["pair same", "pair differs first", "pair differs", "pair differs"]
        # The sum of the second reasoning step is ten too small: at least its last digit but
        # one differs, and its last digit does not.
        left, right = steps.nth(1).locator(".cell").all_text_contents()
        assert (
            left.removesuffix("↵\n") != right.rstrip() and left[:8] == right[:8] == "Step 2: "
        )
        marked = steps.nth(1).locator(".t.changed").all_text_contents()
        assert marked and all(text.isdigit() for text in marked)
        assert not steps.nth(0).locator(".changed").count()
        number = page.locator("#viewer .t").count()
        assert f"{number} tokens" in page.text_content("#viewer .facts")
        assert (
            page.locator("svg.strip")
            .get_attribute("aria-label")
            .startswith(f"Advantage of {number} tokens under stepalign: lowest −")
        )


def test_what_has_nothing_beside_it_is_not_marked_piece_by_piece(browser, tmp_path):
    whole = make_row(np.random.default_rng(0), right=True)
    first = whole["context"].split("\n")[0] + "\n"
    rows = [whole | {"context": text} for text in (first, "")]
    path = write_run_report(make_run(tmp_path / "run", [rows]))
    with visit(browser, path) as seen:
        shown = seen.page.locator(".pair:not(.heads)")
        for number, same in ((1, 1), (2, 0)):
            seen.open(number)
            cells = [text.rstrip() for text in shown.locator(".cell").all_text_contents()]
            assert cells[1::2] == [first.rstrip()] * same + [""] * (4 - same)
            assert seen.page.locator(".pairs .changed").count() == 0
            heading = seen.page.text_content(".pair.heads h3:last-child")
            assert heading == "What the teacher saw" + ": nothing" * (1 - same)
            seen.page.keyboard.press("Escape")
            seen.page.wait_for_selector("dialog", state="hidden")


def test_hover_and_arrow_keys_show_the_numbers_of_a_token(browser, tmp_path):
    row = make_row(np.random.default_rng(0), right=False)
    size = len(row["tokens"])
    row |= {name: [0.0] * size for name in ("logprobs", "advantage", "loss")}
    row["logprobs"][1], row["advantage"][1], row["loss"][1] = -0.25, -1.5, 0.125
    path = write_run_report(make_run(tmp_path / "run", [[row]]))
    told = (
        f"Token 2 of {size} 1 id {row['tokens'][1]}",
        "advantage−1.500", "log π solver−0.250", "log π teacher−1.750",
        "KL(teacher‖solver)0.125",
    )  # fmt: skip
    with visit(browser, path) as seen:
        page = seen.page
        seen.open(1)
        page.hover("#viewer .t[data-i='1']")
        hovered = page.text_content(".card")
        assert all(words in hovered for words in told), hovered
        page.mouse.move(2, 2)
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="hidden")
        page.keyboard.press("Enter")  # focus is back on the row
        page.wait_for_selector("dialog[open] .pairs")
        page.focus(".pairs")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert page.text_content(".card") == hovered
        assert page.get_attribute(".card", "role") == "status"
        page.keyboard.press("End")
        assert f"Token {size} of {size}" in page.text_content(".card")


def test_two_contexts_side_by_side(browser, small):
    with visit(browser, small) as seen:
        page = seen.page
        page.select_option("#source", label="analysis step_00002")
        assert page.text_content("#found") == "4 rollouts"
        seen.open(1)
        assert page.locator("svg.strip").count() == 1
        selects = page.locator("#viewer .controls select")
        selects.nth(2).select_option(label="refsol")
        assert page.locator("svg.strip").count() == 2
        assert page.locator("#viewer .pair.heads h3").all_text_contents() == [
            "Under stepalign", "Under refsol",
        ]  # fmt: skip
        left, right = page.locator("#viewer .pair:nth-child(3) .cell").all_text_contents()
        assert left == right
        page.hover("#viewer .t[data-i='3']")
        card = page.locator(".card table tr").all_text_contents()
        assert card[0] == "stepalignrefsol" and len(card) == 7  # both entropies are known
        selects.nth(1).select_option(label="shifted")  # it failed on this rollout
        assert page.locator("svg.strip").count() == 1
        assert seen.complaints == []


@pytest.mark.parametrize(("view", "colours"), PLACES)
def test_axe_finds_nothing_serious(browser, small, view, colours):
    from axe_playwright_python.sync_playwright import Axe

    with visit(browser, small, viewport=view, color_scheme=colours) as seen:
        background = seen.page.evaluate(
            "getComputedStyle(document.documentElement).backgroundColor"
        )
        assert (background == "rgb(21, 23, 27)") is (colours == "dark")
        assert seen.page.evaluate(READABLE)
        for opened in (False, True):
            if opened:
                seen.page.select_option("#shown", "wrong")
                seen.open(2)
                seen.page.hover("#viewer .t[data-i='3']")
            found = Axe().run(seen.page).response["violations"]
            assert [v for v in found if v["impact"] in STRICT] == []


def test_axe_would_find_what_is_serious(browser, tmp_path):
    from axe_playwright_python.sync_playwright import Axe

    page = tmp_path / "bad.html"
    page.write_text(
        "<title>t</title><p style='color:#ddd;background:#fff'>pale</p><img src=''>"
    )
    with visit(browser, page) as seen:
        found = Axe().run(seen.page).response["violations"]
        assert {"color-contrast", "image-alt"} <= {
            v["id"] for v in found if v["impact"] in STRICT
        }


def test_every_figure_has_words(browser, small):
    with visit(browser, small) as seen:
        figures = seen.page.locator("figure, svg:not(figure svg)")
        assert figures.count() >= 8
        assert seen.page.evaluate(WITHOUT_WORDS) == []


WITHOUT_WORDS = """() => [...document.querySelectorAll('svg')]
  .filter(svg => svg.getAttribute('role') !== 'img' || (svg.ariaLabel ?? '').length < 20)
  .map(svg => svg.outerHTML.slice(0, 200))"""


def test_without_a_script_and_on_paper_a_few_rollouts_are_there(browser, small):
    with visit(browser, small, java_script_enabled=False) as seen:
        check_still_page(seen.page)
    with visit(browser, small) as seen:
        assert not seen.page.is_visible(".examples")
        seen.page.emulate_media(media="print")
        check_still_page(seen.page)
        assert len(seen.page.pdf()) > 20_000


def check_still_page(page: Any) -> None:
    assert page.is_visible("#answer h2") and page.is_visible("#answer table")
    assert page.locator("figure svg").first.is_visible()
    assert page.locator(".examples article").count() >= 2
    assert page.locator(".examples article").first.is_visible()
    assert not page.is_visible("#search") and not page.is_visible("#rows")


def test_the_keyboard_reaches_everything(browser, small):
    with visit(browser, small) as seen:
        page = seen.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.focus("#rows .open")
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open] .pairs")
        first = page.text_content("#viewer h2")
        page.keyboard.press("j")
        seen.until(f"document.querySelector('#viewer h2').textContent !== {first!r}")
        page.keyboard.press("k")
        seen.until(f"document.querySelector('#viewer h2').textContent === {first!r}")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="hidden")
        assert page.evaluate("document.activeElement.className") == "open"


def test_colours_may_be_chosen(browser, small):
    with visit(browser, small, color_scheme="dark") as seen:
        colour = "getComputedStyle(document.documentElement).backgroundColor"
        dark = seen.page.evaluate(colour)
        seen.page.select_option("#theme", "light")
        assert seen.page.evaluate(colour) != dark
        seen.page.reload()
        assert seen.page.evaluate(colour) != dark  # it is remembered


def test_rows_of_older_runs_open_without_tokens(browser, tmp_path):
    known = (
        "problem",
        "answer",
        "rollout",
        "tokens",
        "correct",
        "context",
        "failure",
        "advantage",
    )
    row = {name: make_row(np.random.default_rng(0), right=False)[name] for name in known}
    path = write_run_report(make_run(tmp_path / "old", [[row]], finished=False))
    with visit(browser, path) as seen:
        seen.open(1)
        cells = seen.page.locator("#viewer .cell").all_text_contents()
        assert "".join(cells[::2]).replace("↵", "") == row["rollout"]
        assert seen.page.locator("svg.strip").count() == 1 and seen.complaints == []


@pytest.mark.parametrize(("view", "colours"), PLACES[1:3])
def test_a_comparison_has_a_page_too(browser, tmp_path, view, colours):
    from axe_playwright_python.sync_playwright import Axe

    path = write_comparison_report(make_comparison(), tmp_path / "report.html", "easy")
    with visit(browser, path, viewport=view, color_scheme=colours) as seen:
        found = Axe().run(seen.page).response["violations"]
        assert [v for v in found if v["impact"] in STRICT] == []
        assert seen.page.evaluate(WITHOUT_WORDS) == [] and seen.page.evaluate(READABLE)
        assert "stepalign gained more" in seen.page.text_content("#answer h2")
        assert (seen.requests, seen.complaints) == ([], [])


def test_a_run_that_has_only_begun_has_a_page(browser, tmp_path):
    run: RunDirectory = make_run(tmp_path / "begun", [], finished=False)
    with visit(browser, write_run_report(run)) as seen:
        assert seen.page.text_content("#answer h2") == "Not known yet"
        assert seen.page.locator("#rollouts").count() == 0 and seen.complaints == []
