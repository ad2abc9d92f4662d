# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Nothing changes under a run in silence: twelve drifts, each named or allowed."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.runs import small_config

from stepalign_jax import generate, train
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, read_jsonl, write_json, write_jsonl
from stepalign_jax.config.schema import Config, Constant
from stepalign_jax.critics.engine_critic import ModelCritic
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.problems.problem import Problem
from stepalign_jax.report import __main__ as report
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.inputs import (
    check_inputs,
    fingerprint_inputs,
    recorded_changes,
    warn_of_another_model,
)


def problems(split: str) -> list[Problem]:
    return [Problem(f"{split} {i}", str(i), f"so {i}", "jsonl") for i in range(3)]


class Inputs:
    """A model, a critic, an adapter and three splits in a directory, to be drifted."""

    def __init__(self, directory: Path):
        self.model, self.critic = directory / "model", directory / "critic"
        self.adapter = directory / "adapter"
        for target in (self.model, self.critic):
            shutil.copytree(resolve_checkpoint("packaged:tiny"), target)
            (target / "generation_config.json").write_text('{"eos_token_id": 1}')
        self.adapter.mkdir()
        (self.adapter / "adapter_model.safetensors").write_bytes(b"weights")
        self.problems = {split: problems(split) for split in ("train", "validation", "test")}

    def fingerprints(self) -> dict[str, str]:
        trainable = SimpleNamespace(adapter=str(self.adapter))
        model: Any = SimpleNamespace(directory=self.critic)
        critic = ModelCritic(model, *[None] * 6)  # pyright: ignore[reportArgumentType]
        config: Any = SimpleNamespace(trainable=trainable)
        wrapped: Any = SimpleNamespace(inner=critic)  # as critics/opening.py wraps it
        return fingerprint_inputs(config, self.model, wrapped, self.problems)


def change_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def edit(split: str, **changes: Any) -> Callable[[Inputs], None]:
    def drift(inputs: Inputs) -> None:
        first, *rest = inputs.problems[split]
        inputs.problems[split] = [dataclasses.replace(first, **changes), *rest]

    return drift


DRIFTS: dict[str, tuple[Callable[[Inputs], Any], str]] = {
    "train edited": (edit("train", answer="7"), "train problems"),
    "train reordered": (lambda x: x.problems["train"].reverse(), "train problems"),
    "a reference edited": (edit("train", reference="no"), "train problems"),
    "validation replaced": (edit("validation", text="new"), "validation problems"),
    "test reversed": (lambda x: x.problems["test"].reverse(), "test problems"),
    "a test row removed": (lambda x: x.problems["test"].pop(), "test problems"),
    "weights": (lambda x: change_byte(x.model / "model.safetensors"), "model weights"),
    "config.json": (lambda x: change_byte(x.model / "config.json"), "model config"),
    "tokenizer": (lambda x: change_byte(x.model / "tokenizer.json"), "model tokenizer"),
    "template": (lambda x: change_byte(x.model / "chat_template.jinja"), "model chat template"),
    "stop ids": (lambda x: change_byte(x.model / "generation_config.json"), "model stop ids"),
    "adapter": (
        lambda x: change_byte(x.adapter / "adapter_model.safetensors"),
        "start adapter",
    ),
    "critic": (lambda x: change_byte(x.critic / "model.safetensors"), "critic weights"),
    "its template": (
        lambda x: change_byte(x.critic / "chat_template.jinja"),
        "critic chat temp",
    ),
}


@pytest.fixture
def begun(tmp_path: Path) -> tuple[RunDirectory, Inputs]:
    """A run that has measured its start and two steps."""
    run, inputs = RunDirectory(tmp_path / "run"), Inputs(tmp_path)
    check_inputs(run, inputs.fingerprints(), step=0, allow_changes=False)
    write_json(run.evaluation_file("before"), {"avg_at_k": [1.0]})
    write_jsonl(run.metrics_file, [{"step": 0}, {"step": 1}])
    check_inputs(run, inputs.fingerprints(), step=2, allow_changes=False)  # the same
    return run, inputs


@pytest.mark.parametrize("name", DRIFTS)
def test_a_drift_is_refused_by_name_or_allowed_and_recorded(begun, name, capsys):
    run, inputs = begun
    drift, input_name = DRIFTS[name]
    drift(inputs)
    found = inputs.fingerprints()
    with pytest.raises(UserError, match=f"was begun with other inputs: {input_name}"):
        check_inputs(run, found, step=2, allow_changes=False)
    assert recorded_changes(run) == []
    check_inputs(run, found, step=2, allow_changes=True)
    assert f"warning: goes on with other inputs: {input_name}" in capsys.readouterr().err
    ((change),) = recorded_changes(run)
    assert change["step"] == 2 and [n[: len(input_name)] for n in change["inputs"]] == [
        input_name
    ]
    # "before" pairs with "after" only on the same problems, asked of the same model.
    kept = input_name.startswith(("train", "validation", "critic"))
    assert run.evaluation_file("before").exists() == kept
    check_inputs(run, found, step=3, allow_changes=False)  # from now on these are the inputs


def test_a_run_whose_inputs_nobody_knows_is_refused(begun):
    run, inputs = begun
    run.inputs_file.unlink()
    with pytest.raises(UserError, match=r"inputs\.json is missing, so nobody can tell"):
        check_inputs(run, inputs.fingerprints(), step=2, allow_changes=False)
    check_inputs(run, inputs.fingerprints(), step=2, allow_changes=True)
    run.inputs_file.write_text("{}")
    with pytest.raises(UserError, match=r"inputs\.json is damaged"):
        check_inputs(run, inputs.fingerprints(), step=2, allow_changes=False)


def test_a_run_that_measured_nothing_takes_on_other_inputs(tmp_path):
    run, inputs = RunDirectory(tmp_path / "run"), Inputs(tmp_path)
    check_inputs(run, inputs.fingerprints(), step=0, allow_changes=False)
    inputs.problems["train"].reverse()
    check_inputs(run, inputs.fingerprints(), step=0, allow_changes=False)
    assert recorded_changes(run) == []


def test_another_base_is_named_where_a_run_s_weights_are_used(begun, capsys):
    run, inputs = begun
    warn_of_another_model(run, inputs.model)
    assert capsys.readouterr().err == ""
    change_byte(inputs.model / "model.safetensors")
    warn_of_another_model(run, inputs.model)
    assert "was trained on another base: model weights in" in capsys.readouterr().err


# A whole run: what it writes, what it refuses, and how it gets longer.


def write_problems(directory: Path) -> dict[str, Any]:
    for split, first in (("train", 20), ("validation", 40), ("test", 60)):
        rows = [
            {"problem": f"{first + i}+2*3-4", "answer": str(first + i + 2), "reference": "so"}
            for i in range(4)
        ]
        write_jsonl(directory / f"{split}.jsonl", rows)
    numbers = {"num_train": 4, "num_validation": 2, "num_test": 4}
    return {"kind": "jsonl", "path": str(directory), **numbers}


def steps(config: Config, number: int, **more: Any) -> Config:
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, num_steps=number, **more)
    )


def test_a_run_goes_on_only_with_its_inputs_and_may_get_longer(tmp_path, capsys):
    config = small_config(
        tmp_path / "runs",
        condition="no_context",
        problems=write_problems(tmp_path),
        train={"num_steps": 2, "checkpoint_every_steps": 1, "validate_every_steps": 1},
        optimizer={"schedule": "constant", "warmup_steps": 0},
    )
    assert isinstance(config.optimizer.schedule, Constant)
    train.train(config)
    run = RunDirectory.of(config)
    rows = read_jsonl(run.metrics_file)
    longer = steps(config, 3)

    (tmp_path / "test.jsonl").rename(tmp_path / "kept")
    write_jsonl(tmp_path / "test.jsonl", reversed(read_jsonl(tmp_path / "kept")))
    with pytest.raises(UserError, match="begun with other inputs: test problems; put back"):
        train.train(longer)
    (tmp_path / "kept").rename(tmp_path / "test.jsonl")

    write_jsonl(run.metrics_file, [rows[0]])
    with pytest.raises(UserError, match=r"metrics\.jsonl lacks the row of step 1"):
        train.train(longer)
    write_jsonl(run.metrics_file, [rows[0], rows[1], rows[1]])
    with pytest.raises(UserError, match=r"metrics\.jsonl has 2 rows of step 1"):
        train.train(longer)
    run.metrics_file.write_text("[1]\n" + json.dumps(rows[1]) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged at line 1"):
        train.train(longer)
    write_jsonl(run.metrics_file, rows)

    before = read_json(run.evaluation_file("before"))
    write_json(run.evaluation_file("before"), {**before, "avg_at_k": [1.0]})
    with pytest.raises(UserError, match=r"before\.json is no evaluation of 4 problems"):
        train.train(longer)
    write_json(run.evaluation_file("before"), before)

    # Neither strangers' files nor what killed processes left is in the way.
    write_json(run.evaluation_file("validation_best"), {"avg_at_k": [1.0]})
    (run.path / "rollouts" / "step_x.jsonl").write_text("")
    leftovers = [
        run.path / "prompts.json.12.tmp",
        run.path / "evaluations" / "before.json.7.tmp",
    ]
    for leftover in leftovers:
        leftover.write_text("half")
    capsys.readouterr()
    summary = train.train(longer)
    assert "goes on from step 2 of 3" in capsys.readouterr().err
    assert not any(leftover.exists() for leftover in leftovers)
    assert read_jsonl(run.metrics_file)[:2] == rows
    assert read_json(run.config_file)["train"]["num_steps"] == 3
    whole = train.train(dataclasses.replace(longer, name="whole"))
    assert whole["after"] == summary["after"] and "changed_inputs" not in summary
    assert (
        read_jsonl(run.metrics_file)[2]
        == read_jsonl(RunDirectory.of(dataclasses.replace(longer, name="whole")).metrics_file)[
            2
        ]
    )

    # Drawn and sampled from, finished or not.
    run.summary_file.unlink()
    report.main(["--run", str(run.path)])
    assert "\n3 of 3 steps are done\nwritten: " in capsys.readouterr().out
    assert (run.report / "run.png").stat().st_size > 10_000
    generate.main(["--run", str(run.path), "--prompt", "20+2*3-4", "--max-new-tokens", "30"])
    out, err = capsys.readouterr()
    assert out.startswith("Step 1: 2*3=6") and f"{run.path}, step 3" in err

    run.config_file.unlink()
    with pytest.raises(UserError, match=r"holds results without config\.json"):
        train.train(longer)


def test_a_cosine_run_gets_no_longer(tmp_path):
    config = small_config(tmp_path)
    run = RunDirectory.of(config)
    write_json(run.config_file, json.loads(json.dumps(dataclasses.asdict(config))))
    write_json(run.evaluation_file("before"), {})
    with pytest.raises(UserError, match=r"more steps only with optimizer\.schedule=constant"):
        train.train(steps(config, 6))
