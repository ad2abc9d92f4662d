# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Sources of problems by config class; what each gives for each split."""

import dataclasses

import pytest
from support.runs import small_config

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.schema import JsonlProblems, ProblemsConfig
from stepalign_jax.problems.arithmetic import arithmetic_problems, correct_trace
from stepalign_jax.problems.sources import SPLITS, load_problems

COUNTS = {
    "num_train": 3,
    "num_validation": 2,
    "num_test": 1,
    "base_avg_below": 0.0,
    "base_avg_samples": 1,
}


def test_each_split_has_its_number_and_no_problem_of_another(tmp_path):
    config = dataclasses.replace(small_config(tmp_path).problems, **COUNTS)
    found = {split: load_problems(config, split) for split in SPLITS}
    assert [len(problems) for problems in found.values()] == [3, 2, 1]
    assert len({problem.text for problems in found.values() for problem in problems}) == 6
    # The generator calls the first split otherwise; its draws depend on the name.
    assert found["train"] == arithmetic_problems("training", 3, 3, 3)
    assert all(problem.correct is correct_trace for problem in found["test"])


def test_files_are_read_by_split_and_cut_to_the_number(tmp_path):
    for split in SPLITS:
        rows = [f'{{"problem": "{split} {i}", "answer": "{i}"}}\n' for i in range(3)]
        (tmp_path / f"{split}.jsonl").write_text("".join(rows))
    config = JsonlProblems(path=str(tmp_path), **COUNTS)
    assert [p.text for p in load_problems(config, "validation")] == [
        "validation 0",
        "validation 1",
    ]
    assert load_problems(config, "test")[0].correct is None


def test_a_split_without_problems_is_refused(tmp_path):
    config = JsonlProblems(path=str(tmp_path), **COUNTS | {"num_validation": 0})
    with pytest.raises(
        UserError, match=r"validation set has no problems; give problems\.num_val"
    ):
        load_problems(config, "validation")


def test_a_class_without_a_source_is_a_mistake_of_its_author():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Nowhere(ProblemsConfig):
        kind: str = "nowhere"

    with pytest.raises(TypeError, match="no source of problems is registered for Nowhere"):
        load_problems(Nowhere(**COUNTS), "train")
