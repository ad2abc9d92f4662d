# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""First errors on rows in ProcessBench's schema, made by hand."""

import json
import random

import pytest
from feedback.test_validate import PLAIN, planted

from stepalign_jax.base.errors import UserError
from stepalign_jax.feedback.contexts import Context
from stepalign_jax.feedback.process_bench import (
    as_attempt,
    named_error,
    process_scores,
    read_process_bench,
)
from stepalign_jax.feedback.reasoning_steps import TraceFormat
from stepalign_jax.problems.arithmetic import arithmetic_problems, correct_trace, first_error

TAGS = TraceFormat(r"<step_\d+>", r"(?s)<answer>(.*?)(?:</answer>|(?=<answer>)|\Z)")
RIGHT = ["Half of 48 is 24.", "So together they have 48 + 24 = 72 pencils."]
ROWS = [
    {"problem": "Ann has 48 pencils, Bob half as many.", "steps": steps, "label": label}
    for steps, label in [
        (RIGHT, -1),
        (RIGHT[:1], -1),
        ([RIGHT[0], RIGHT[1].replace("72", "62")], 1),
        (["Half of 48 is 22.", "So together they have 48 + 22 = 70 pencils."], 0),
        (["Half of 48 is 26.", "So together they have 48 + 26 = 74 pencils."], 0),
    ]
]
COMPLETE = [
    {"id": f"hand-{i}", "generator": "us", "final_answer_correct": i == 0, **row}
    for i, row in enumerate(ROWS)
]


def write(tmp_path, rows):
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trace(steps):
    return "\n".join(f"<step_{i}>\n{s}\n</step_{i}>" for i, s in enumerate(steps, start=1))


def test_critiques_of_rows_name_the_first_error(tmp_path):
    rows = read_process_bench(write(tmp_path, COMPLETE))
    attempts = [as_attempt(row) for row in rows]
    answer = "\n<answer>\n\\boxed{72}\n</answer>"
    critiques = [Context(trace(RIGHT) + answer, None)] * 4 + [Context("", "truncated")]
    named = [named_error(a, c, TAGS) for a, c in zip(attempts, critiques, strict=True)]
    assert named == [-1, -1, 1, 0, None]
    scores = process_scores([row["label"] for row in rows], named)
    assert scores.error_accuracy == pytest.approx(2 / 3) and scores.correct_accuracy == 1
    assert scores.f1 == pytest.approx(0.8) and scores.no_verdict == 1


def generated(number):
    """Rows of planted mistakes, and the oracle's critiques of them in the paper's format."""
    rng, rows, critiques = random.Random(7), [], []
    for i, problem in enumerate(arithmetic_problems("training", number, 3, 8)):
        rollout = planted(rng, problem)
        steps = [step.text for step in PLAIN.steps(rollout)]
        first, right = first_error(problem.text, rollout), correct_trace(problem.text, rollout)
        label = -1 if first is None or first >= len(steps) else first
        rows.append({
            "id": f"planted-{i}", "generator": "planted", "problem": problem.text,
            "steps": steps, "final_answer_correct": label == -1, "label": label,
        })  # fmt: skip
        corrected = trace([step.text for step in PLAIN.steps(right)])
        critiques.append(Context(f"{corrected}\n<answer>\n{problem.answer}\n</answer>", None))
    return rows, critiques


def test_generated_rows_are_scored_apart(tmp_path):
    rows, critiques = generated(300)
    read = read_process_bench(write(tmp_path, rows))
    attempts, labels = list(map(as_attempt, read)), [row["label"] for row in read]

    def scores(said):
        named = [named_error(a, c, TAGS) for a, c in zip(attempts, said, strict=True)]
        return process_scores(labels, named)

    of_oracle = scores(critiques)
    # One that copies every third rollout loses of the wrong ones alone.
    copies = [Context(attempt.text, None) for attempt in attempts]
    lazy = scores([copies[i] if i % 3 == 0 else c for i, c in enumerate(critiques)])
    wrong = sum(label != -1 for label in labels)
    print(f"{wrong} wrong and {300 - wrong} right rows: {of_oracle}, lazy {lazy}")  # pytest -rP
    assert 100 < wrong < 270
    assert min(of_oracle.error_accuracy, of_oracle.correct_accuracy) >= 0.99
    assert lazy.correct_accuracy == of_oracle.correct_accuracy
    assert 0.6 < lazy.error_accuracy < 0.75


def test_the_two_accuracies_are_apart():
    assert process_scores([-1, -1, 0, 3], [-1, 2, 0, 1])[:3] == (0.5, 0.5, 0.5)
    # A critic that never objects is right on every sound row, and worth nothing.
    assert process_scores([-1, 0, 3], [-1, -1, -1])[:3] == (0.0, 1.0, 0.0)
    assert process_scores([-1], [-1]) == (None, 1.0, None, 0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"label": "1"}, "line 1: label must be a int"),
        ({"label": 2}, "line 1: label is 2, but it must be -1 or the 0-based index of one of"),
        ({"steps": [1, 2]}, "line 1: steps must be a list of texts"),
        (
            {"generator": None},
            "line 1: generator must be a str; rows need ProcessBench's fields",
        ),
    ],
)
def test_rows_of_another_schema_are_refused(tmp_path, change, sentence):
    with pytest.raises(UserError, match=sentence):
        read_process_bench(write(tmp_path, [COMPLETE[0] | change]))
