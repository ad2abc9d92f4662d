# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Directories of runs as large, as old or as hostile as a report may meet, made in seconds."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from support.run_files import finish, interval, make_summary
from support.runs import small_config

from stepalign_jax.analysis.scored import TOP, ScoredRollouts
from stepalign_jax.base.files import write_json, write_jsonl
from stepalign_jax.config.compared import config_json
from stepalign_jax.runs.directory import RunDirectory

_TOKEN = re.compile(r"Step |Answer: |: |[\s\S]")


def make_row(rng: np.random.Generator, *, right: bool) -> dict[str, Any]:
    """A row of rollouts/ with three reasoning steps, whose second is wrong or right."""
    a, b, c = (int(n) for n in rng.integers(11, 60, 3))
    second = a * 2 + b
    said = second if right else second - 10
    rollout, context = (
        f"Step 1: {a}*2={2 * a}\nStep 2: {2 * a}+{b}={sum_}\n"
        f"Step 3: {sum_}-{c}={sum_ - c}\nAnswer: {sum_ - c}"
        for sum_ in (said, second)
    )
    pieces = _TOKEN.findall(rollout)
    ends = np.cumsum([*map(len, pieces), 0]).tolist()  # and the stop token
    size = len(ends)
    numbers = rng.exponential(0.4, (3, size)) * (rng.random((3, size)) < 0.5)
    return {
        "problem": f"{a}*2+{b}-{c}",
        "answer": str(second - c),
        "rollout": rollout,
        "tokens": rng.integers(0, 60, size).tolist(),
        "ends": ends,
        "logprobs": (-numbers[0]).round(5).tolist(),
        "finished": True,
        "correct": right,
        "context": context,
        "failure": None,
        "advantage": ((1 - 3 * (not right)) * numbers[1]).round(5).tolist(),
        "loss": numbers[2].round(5).tolist(),
    }


def make_run(
    path: Path,
    steps: Sequence[Sequence[Mapping[str, Any]]],
    *,
    finished: bool = True,
    **metrics: float,
) -> RunDirectory:
    """Writes a run with these rows of rollouts by step, and `metrics` in each step's row."""
    config = config_json(small_config(path.parent))
    config["name"] = path.name
    sizes = {"num_steps": len(steps), "problems_per_step": max(map(len, steps), default=0)}
    config["train"] |= {**sizes, "samples_per_problem": 1}
    run = RunDirectory(path)
    write_json(run.config_file, config)
    prompts = {"solver": "<|user|>1+2", "critic": "Attempt: 3", "teacher": "Feedback: 3"}
    write_json(run.prompts_file, {**prompts, "alignment": {"template_artefacts": []}})
    for step, rows in enumerate(steps):
        write_jsonl(run.rollouts_file(step), rows)
    if finished:
        finish(
            run,
            step_seconds=[2.0] * max(1, len(steps)),
            validation={0: 0.25, len(steps) - 1: 0.75},
        )
        extra = {"num_problems": 200, "condition": "stepalign"}
        sides = make_summary()
        for side in ("before", "after", "gain"):
            sides[side] |= {"truncated": interval(0.0), "unparsed": interval(0.0)}
        write_json(run.summary_file, sides | extra)
    rows = [
        {"step": i, "loss": 0.5, "reward": 0.5, "solver_tokens": 640.0, "critic_tokens": 32.0,
         "contexts_failed": 0.0, "truncated": 0.0, "mean_tokens": 40.0, **metrics}
        for i in range(len(steps))
    ]  # fmt: skip
    write_jsonl(run.metrics_file, rows)
    return run


def random_steps(num_steps: int, per_step: int) -> list[list[dict[str, Any]]]:
    """Rows of rollouts by step; more and more of them are right."""
    rng = np.random.default_rng(0)
    return [
        [
            make_row(rng, right=bool(rng.random() < (step + 1) / (num_steps + 1)))
            for _ in range(per_step)
        ]
        for step in range(num_steps)
    ]


def add_analysis(
    run: RunDirectory, label: str, rows: Sequence[Mapping[str, Any]]
) -> ScoredRollouts:
    """Scores rows under three contexts, of which the last fails on the first row."""
    rng, contexts = np.random.default_rng(1), ["stepalign", "refsol", "shifted"]
    lengths = [len(row["tokens"]) for row in rows]
    total, of_contexts = sum(lengths), (len(contexts), sum(lengths))

    def numbers(*shape: int) -> np.ndarray:
        return rng.exponential(0.3, shape).astype(np.float32)

    usable = np.ones((len(contexts), len(rows)), bool)
    usable[2, 0] = False
    texts = [
        {
            "id": f"r{i}", "problem": row["problem"], "answer": row["answer"],
            "rollout": row["rollout"], "step": None, "reference": None,
            "contexts": [row["context"], f"Reference of {i}", ""],
            "failures": [None, None, None if usable[2, i] else "no_later_step"],
            "steps": [[m.start(), m.end()] for m in re.finditer(r"Step .*\n", row["rollout"])],
        }
        for i, row in enumerate(rows)
    ]  # fmt: skip
    scored = ScoredRollouts(
        contexts=contexts,
        rows=texts,
        offsets=np.cumsum([0, *lengths]),
        tokens=np.concatenate([row["tokens"] for row in rows]).astype(np.int32),
        ends=np.concatenate([row["ends"] for row in rows]).astype(np.int32),
        reasoning_step=np.zeros(total, np.int32),
        markup=np.zeros(total, bool),
        correct=np.array([row["correct"] for row in rows]),
        first_error=np.array([-1 if row["correct"] else 1 for row in rows], np.int32),
        usable=usable,
        solver_logprobs=-numbers(total),
        teacher_logprobs=-numbers(*of_contexts),
        kl=numbers(*of_contexts),
        solver_entropy=numbers(total),
        teacher_entropy=numbers(*of_contexts),
        solver_top_ids=np.zeros((total, TOP), np.int32),
        solver_top_logprobs=-numbers(total, TOP),
        teacher_top_ids=np.zeros((*of_contexts, TOP), np.int32),
        teacher_top_logprobs=-numbers(*of_contexts, TOP),
    )
    scored.save(run.path / "analysis" / label)
    return scored


HOSTILE = (
    "</script><script>window.harm = 1</script>",
    "<img src=x onerror='window.harm = 1'>",
    "\u202eesrever\u202c and \u2067isolated\u2069, hidden\u200bspace",
    "a\x00b\x1b[31m",
    "half a character \ud835 here",
    "javascript:window.harm=1 data:text/html,<script>window.harm=1</script>",
    "'\"><svg onload=window.harm=1>--></style></title></textarea>]]>",
    "שלום 123 مرحبا",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 👩‍👩‍👧 e\u0301",
)


def hostile_row(text: str) -> dict[str, Any]:
    """A row in which everything that somebody wrote is `text`; a token is a character."""
    rollout = f"Step 1: {text}\nAnswer: {text}"
    size = len(rollout)
    return {
        "problem": text, "answer": text, "rollout": rollout, "tokens": list(range(size)),
        "ends": list(range(1, size + 1)), "logprobs": [-0.5] * size, "finished": False,
        "correct": False, "context": f"Step 1: x{text}\nAnswer: {text}", "failure": None,
        "advantage": [-0.25] * size, "loss": [0.5] * size,
    }  # fmt: skip


def write_rows_in_ascii(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows whose texts UTF-8 cannot spell, as JSON may."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
