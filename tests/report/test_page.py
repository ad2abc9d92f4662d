# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What report.html is made from: the answer, doubts, escaping, and blocks of rollouts."""

import base64
import hashlib
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report.test_report import make_comparison
from support.report_runs import add_analysis, make_row, make_run, random_steps
from support.run_files import interval, make_summary

from stepalign_jax.base.files import read_json, write_json, write_jsonl
from stepalign_jax.report import rollouts
from stepalign_jax.report.answer import answer_of, count
from stepalign_jax.report.comparison_page import comparison_doubts, write_comparison_report
from stepalign_jax.report.doubts import doubts_of
from stepalign_jax.report.facts import Facts, read_facts
from stepalign_jax.report.html import Html, tag, written
from stepalign_jax.report.page import compressed, write_page
from stepalign_jax.report.rollouts import pack_rollouts
from stepalign_jax.report.run_page import write_run_report
from stepalign_jax.report.tables import SELECTION_NOTE


def inflated(block: str) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(block), -15))


def blocks_of(path: Path) -> dict[str, Any]:
    found = re.findall(r'octet-stream" id="(\w+)">([^<]*)</script>', path.read_text("utf-8"))
    return {name: inflated(block) for name, block in found}


def make_facts(**changes: Any) -> Facts:
    values: dict[str, Any] = {
        "name": "run",
        "config": {
            "train": {"num_steps": 10, "problems_per_step": 4, "samples_per_problem": 2}
        },
        "metrics": [{"step": 0, "solver_tokens": 1_000.0, "critic_tokens": 500.0}],
        "timings": [{"step": 0, "total": 30.0, "critique": 5.0, "validate": 10.0}],
        "summary": make_summary(0.4, 0.7) | {"num_problems": 200},
        "prompts": {},
        "preflight": {},
        "changes": [],
        "validation": {},
        "validation_gain": None,
    }
    return Facts(**values | changes)


def test_text_is_escaped_and_html_is_not():
    made = tag("p", '<b> & "x"', Html("<i>"), tag("br"), class_="a<b", hidden=True, id=None)
    assert made == '<p class="a&lt;b" hidden>&lt;b&gt; &amp; &quot;x&quot;<i><br></p>'
    assert written("a\u202eb\x00c\ud800") == (
        '<bdi dir="auto">a<span class="sign">U+202E</span>b<span class="sign">U+0000</span>c'
        '<span class="sign">U+D800</span></bdi>'
    )


def test_the_same_signs_are_named_in_python_and_in_the_page():
    root = Path(rollouts.__file__).parent
    python = re.search(r"re\.compile\(\n(.*?)\n\)", (root / "html.py").read_text(), re.DOTALL)
    script = re.search(
        r"const SIGNS =\s*/\[(.*?)\]/gu", (root / "page/text.js").read_text(), re.S
    )
    assert python and script
    assert re.sub(r'[\s"\[\]]', "", python[1]) == script[1]


def test_a_page_forbids_every_request_and_runs_its_own_script_alone(tmp_path):
    path = write_page(
        tmp_path / "p.html", title="<t>", body=tag("p", "x"), blocks={"index": "eA"}
    )
    page = path.read_text("utf-8")
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert policy and script and style and "<title>&lt;t&gt;</title>" in page
    hashes = [
        base64.b64encode(hashlib.sha256(part[1].encode()).digest()).decode()
        for part in (script, style)
    ]
    assert policy[1] == (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert not re.findall(r"https?://(?!www\.w3\.org)", page)
    assert "innerHTML" not in script[1] and "eval(" not in script[1]


def test_blocks_hold_what_was_put_into_them():
    value = {"a": [1, None, "</script>\ud800\u2028"]}
    block = compressed(value)
    assert re.fullmatch("[A-Za-z0-9+/=]+", block) and inflated(block) == value


def test_columns_and_records_of_a_rollout_by_hand(tmp_path):
    row = make_row(np.random.default_rng(0), right=False) | {
        "rollout": "𝔘Step 1: 1+1=3\nAnswer: 3", "tokens": [5, 6, 7], "ends": [1, 15, 24],
        "logprobs": [-0.5, -0.25, 0.0], "advantage": [0.001, -2.0, 0.9994],
        "loss": [0.1, 0.2, 0.3], "context": "Step 1: 1+1=2", "finished": False,
    }  # fmt: skip
    run = make_run(tmp_path / "run", [[row]])
    packed = pack_rollouts(run, read_facts(run).config)
    index, texts, numbers = (inflated(packed.blocks[name]) for name in ("index", "t0", "n0"))
    column = {name: values[0] for name, values in index["columns"].items()}
    assert column == {
        "source": 0, "place": 0, "step": 0, "problem": 0, "correct": 0, "tokens": 3, "cut": 1,
        "failure": 0, "mean": 1000, "low": -2000, "chunk": 0, "at": 0,
    }  # fmt: skip
    assert index["problems"] == [row["problem"]] and index["failures"] == [""]
    assert index["sources"] == [{"name": "training", "contexts": ["stepalign"]}]
    # The first character takes two units of UTF-16.
    assert texts == [
        [row["problem"], row["answer"], row["rollout"], [row["context"]], [None], [2, 16],
         [[0, 13]], None]
    ]  # fmt: skip
    assert numbers == [
        [
            [5, 6, 7],
            [2, 14, 9],
            [-500, -250, 0],
            [[1, -2000, 999]],
            [[100, 200, 300]],
            None,
            [None],
        ]
    ]
    assert packed.number == packed.opened == 1


def test_rollouts_without_a_usable_context_have_no_numbers_of_the_teacher(tmp_path):
    row = make_row(np.random.default_rng(0), right=True)
    row |= {"failure": "empty", "advantage": None, "loss": None, "context": ""}
    run = make_run(tmp_path / "run", [[row]])
    packed = pack_rollouts(run, read_facts(run).config)
    index, numbers = inflated(packed.blocks["index"]), inflated(packed.blocks["n0"])
    assert index["columns"]["mean"] == index["columns"]["low"] == [None]
    assert index["failures"] == ["empty"] and numbers[0][3:5] == [[None], [None]]
    assert packed.examples == []


def test_an_analysis_is_a_source_of_its_own_with_all_contexts(tmp_path):
    run = make_run(tmp_path / "run", random_steps(1, 3))
    rows = random_steps(2, 2)[1]
    scored = add_analysis(run, "step_00020", rows)
    for name, files in {
        "half": ["tokens.npz"],
        "broken": ["tokens.npz", "rollouts.jsonl"],
    }.items():
        (run.path / "analysis" / name).mkdir()  # the first is being written
        for file in files:
            (run.path / "analysis" / name / file).write_bytes(b"PK")
    packed = pack_rollouts(run, read_facts(run).config)
    index = inflated(packed.blocks["index"])
    assert [source["name"] for source in index["sources"]] == [
        "training",
        "analysis step_00020",
    ]
    assert index["columns"]["source"] == [0, 0, 0, 1, 1]
    texts, numbers = inflated(packed.blocks["t0"])[3], inflated(packed.blocks["n0"])[3]
    assert texts[3] == scored.rows[0]["contexts"] and texts[4] == [None, None, "no_later_step"]
    assert texts[7] == scored.first_error[0]
    expected = np.rint(1000 * scored.advantage[1, scored.of(0)].astype(float)).astype(int)
    assert numbers[3][1] == expected.tolist() and numbers[3][2] is None
    assert len(numbers[5]) == len(rows[0]["tokens"]) and numbers[6][2] is None
    assert len(packed.faults) == 1 and "broken" in packed.faults[0]


def test_what_does_not_fit_is_left_out_evenly_and_said(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", random_steps(8, 96))  # two chunks a step
    whole = pack_rollouts(run, read_facts(run).config)
    size = sum(map(len, whole.blocks.values())) - len(whole.blocks["index"])
    assert whole.opened == whole.number == 768
    half = pack_rollouts(run, read_facts(run).config, room=int(0.6 * size))
    assert (half.number, half.opened) == (768, 384)
    chunks = inflated(half.blocks["index"])["columns"]["chunk"]
    assert [chunk for chunk in dict.fromkeys(chunks) if chunk >= 0] == list(range(0, 16, 2))
    assert sum(map(len, half.blocks.values())) < 0.6 * size + len(half.blocks["index"])
    monkeypatch.setattr(rollouts, "pack_rollouts", pack_rollouts)
    monkeypatch.setattr(
        "stepalign_jax.report.run_page.pack_rollouts",
        lambda run, config: pack_rollouts(run, config, room=int(0.6 * size)),
    )
    page = write_run_report(run).read_text("utf-8")
    assert "The list has all 768 rollouts; the texts of 384" in page


def test_a_long_rollout_has_a_chunk_of_its_own(tmp_path):
    rows = random_steps(1, 3)[0]
    rows[1]["rollout"] = "x" * 300_000
    run = make_run(tmp_path / "run", [rows])
    chunks = inflated(pack_rollouts(run, {}).blocks["index"])["columns"]["chunk"]
    assert chunks == [0, 0, 1]


def test_the_answer_of_a_finished_run():
    answer = answer_of(make_facts())
    assert (answer.verdict, answer.headline) == ("learned", "It learned")
    assert answer.sentence == (
        "Avg@12 on 200 test problems rose from 40.0 % to 70.0 %: +30.0 [+27.0, +33.0] points, "
        "with the interval over problems in brackets."
    )
    assert answer.costs == [
        ("1,000", "tokens sampled by the solver"),
        ("500", "tokens written by the critic"),
        ("20 s", "of training, 1 optimizer step"),
        ("25 %", "of that time was the critic's"),
    ]


@pytest.mark.parametrize(
    ("gain", "verdict", "headline"),
    [
        (interval(0.3), "learned", "It learned"),
        (interval(0.02), "unclear", "No sign that it learned"),
        (interval(-0.3), "worse", "It got worse"),
    ],
)
def test_the_verdict_follows_the_interval(gain, verdict, headline):
    summary = make_summary() | {"gain": {"avg_at_k": gain}}
    answer = answer_of(make_facts(summary=summary))
    assert (answer.verdict, answer.headline) == (verdict, headline)


def test_the_answer_of_a_run_that_goes_on():
    begun = answer_of(make_facts(summary=None))
    assert begun.verdict == "open" and begun.sentence.startswith("1 of 10 optimizer steps are")
    measured = {"validation": {0: 0.2, 10: 0.5}, "validation_gain": interval(0.3)}
    answer = answer_of(make_facts(summary=None, **measured))
    assert answer.headline == "It is learning" and "from 20.0 % to 50.0 %" in answer.sentence


def test_counts_have_few_digits():
    assert [count(n) for n in (950, 12_345, 1_234_567, 3.4e9)] == [
        "950",
        "12,345",
        "1.2 M",
        "3.4 G",
    ]


def doubts(**changes: Any) -> str:
    return "\n".join(doubts_of(make_facts(**changes)))


def test_every_run_is_one_run_and_a_good_one_has_no_other_doubt():
    assert doubts_of(make_facts()) == [
        "This is one run with one seed: intervals are over problems and say nothing of what "
        "another seed would give."
    ]


def gaining(gain: dict[str, float]) -> dict[str, Any]:
    return make_summary() | {"gain": {"avg_at_k": gain}}


def summary_with(**scores: Any) -> dict[str, Any]:
    summary = make_summary() | {"num_problems": 200}
    for side in ("before", "after"):
        summary[side] |= scores
    return summary


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"summary": None}, "The run is not done"),
        ({"summary": gaining(interval(0.01))}, "holds 0"),
        ({"summary": gaining(interval(0.3, 0.1))}, "20 points wide"),
        ({"summary": make_summary() | {"num_problems": 30}}, "There are 30 test problems"),
        ({"summary": summary_with(truncated=interval(0.05))}, "5.0 % before and 5.0 % after"),
        ({"summary": summary_with(unparsed=interval(0.25))}, "no final answer that could be"),
        ({"metrics": [{"truncated": 0.5}]}, "newest rollouts 50.0 % were truncated"),
        ({"timings": [{"total": 1.0, "grading_timeouts": 3}]}, "3 answers could not be judged"),
        (
            {"metrics": [{"contexts_failed": 2.0, "context_failed/empty": 2.0}]},
            "2 of 8 rollouts (25.0 %) had no usable context, most often because of “empty” "
            "(nothing but whitespace)",
        ),
        ({"metrics": [{"critic_exact_on_wrong": 0.5}]}, "50 % of the critiques were what"),
        ({"changes": [{"step": 3, "inputs": ["a", "b"]}]}, "Inputs changed at step 3: a, b."),
        ({"changes": [{"step": 3, "num_steps": [3, 9]}]}, "lengthened at step 3, from 3 to 9"),
        ({"config": {"problems": {"base_avg_below": 0.5}}}, "(Avg below 50 %)"),
        ({"validation": {0: 0.1, 5: 0.6, 10: 0.5}}, "best at step 5 (60.0 %) and is 50.0 %"),
        ({"validation": {0: 0.1, 5: 0.6, 10: 1.0}}, "at its ceiling"),
        ({"preflight": {"warnings": ["it is flat"]}}, "Before the first step: it is flat."),
        ({"prompts": {"alignment": {"template_artefacts": ["<t>"]}}}, "alone at: <t>."),
        ({"config": {"model": {"path": "packaged:tiny"}}}, "whose mistake was planted"),
    ],
)  # fmt: skip
def test_each_doubt_follows_from_a_number(changes, words):
    assert words in doubts(**changes)
    assert words not in doubts()


def test_answers_that_got_longer_are_doubted():
    longer = make_summary()
    longer["after"]["mean_tokens"] = interval(90.0)
    assert "went from 40 to 90 tokens" in doubts(summary=longer)


def test_a_finished_run_in_one_page(tmp_path):
    counts = {
        "context_failed/wrong_answer": 1.0,
        "critic_outcome/ok": 29.0,
        "critic_requests": 30.0,
    }
    run = make_run(tmp_path / "mine", random_steps(2, 30), **counts)
    page = write_run_report(run).read_text("utf-8")
    assert write_run_report(run).read_text("utf-8") == page  # the same bytes
    words = (
        "mine: report",
        "It learned",
        "ends in another answer than the expected one",
        "96.7",
    )
    assert all(word in page for word in words)
    assert page.index('id="answer"') < page.index('id="prompts"') < page.index('id="rollouts"')
    blocks = blocks_of(run.report / "report.html")
    assert len(blocks["index"]["columns"]["step"]) == 60


def test_a_run_may_be_anywhere_on_its_way(tmp_path):
    run = make_run(tmp_path / "run", [], finished=False)
    write_run_report(run)
    write_jsonl(run.rollouts_file(0), random_steps(1, 2)[0])
    run.metrics_file.write_text('{"step": 0, "loss": 0.5}\n{"step": 1, "lo', encoding="utf-8")
    assert "1 of 0 optimizer steps are done" in write_run_report(run).read_text("utf-8")


def test_a_config_of_another_version_has_a_page(tmp_path):
    run = make_run(tmp_path / "run", random_steps(1, 2))
    config = read_json(run.config_file)
    write_json(run.config_file, {"evaluation": config["evaluation"]})
    assert "It learned" in write_run_report(run).read_text("utf-8")


def test_a_comparison_opens_with_the_difference(tmp_path):
    comparison = make_comparison() | {
        "notes": ["Two seeds: few."],
        "missing": {"equal_tokens": ["grpo:0"]},
    }
    seed = {"best_on_test": 0.5, "chosen_elsewhere": 0.46, "effect": 0.04}
    comparison["selection"] = {"equal_tokens": {"stepalign": [seed]}}
    page = write_comparison_report(comparison, tmp_path / "r.html", "easy").read_text("utf-8")
    words = (
        "stepalign gained more", "stepalign less no_context, the best of the others",
        "+25.0 [+20.0, +30.0]", "At equal tokens these cells are missing: grpo:0.",
        "Two seeds: few.", SELECTION_NOTE,
    )  # fmt: skip
    assert all(word in page for word in words)
    assert re.search(
        r"stepalign</t[dh]><td[^>]*>50.0</td><td[^>]*>46.0</td><td[^>]*>4.0<", page
    )
    unclear = make_comparison()
    unclear["differences"]["equal_tokens"]["no_context"] = {"avg_at_k": interval(0.01)}
    unclear["differences"]["equal_wall_clock"] = unclear["differences"]["equal_tokens"]
    found = list(comparison_doubts(unclear))
    assert [d.split(":")[0] for d in found] == [
        "At equal tokens the difference to no_context may be chance",
        "At equal wall clock the difference to no_context may be chance",
    ]
