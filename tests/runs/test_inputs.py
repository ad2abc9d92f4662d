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

from stepalign_jax import evaluate, generate, train
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, read_jsonl, write_json, write_jsonl
from stepalign_jax.config.compared import config_json
from stepalign_jax.config.learning import Constant
from stepalign_jax.config.schema import Config
from stepalign_jax.critics.engine_critic import ModelCritic
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.problems.problem import Problem
from stepalign_jax.report import __main__ as report
from stepalign_jax.report.tables import summary_table
from stepalign_jax.runs.directory import RunDirectory, open_run
from stepalign_jax.runs.inputs import (
    Inputs,
    fingerprint_inputs,
    lengthen_run,
    recorded_changes,
    warn_of_another_model,
    warn_of_other_problems,
)


def problems(split: str) -> list[Problem]:
    return [Problem(f"{split} {i}", str(i), f"so {i}", "jsonl") for i in range(3)]


class Drifting:
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


def edit(split: str, **changes: Any) -> Callable[[Drifting], None]:
    def drift(inputs: Drifting) -> None:
        first, *rest = inputs.problems[split]
        inputs.problems[split] = [dataclasses.replace(first, **changes), *rest]

    return drift


DRIFTS: dict[str, tuple[Callable[[Drifting], Any], str]] = {
    "train edited": (edit("train", answer="7"), "train problems"),
    "train reordered": (lambda x: x.problems["train"].reverse(), "train problems"),
    "a reference edited": (edit("train", reference="no"), "train problems"),
    "a scorer": (edit("train", scorer='{"task": "x", "entry": {}}'), "train problems"),
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


def check(
    run: RunDirectory, found: dict[str, str], *, step: int = 2, allow_changes: bool = False
) -> None:
    Inputs(run, step=step, allow_changes=allow_changes).check(found)


LABELS = ["before", "after", "validation_00000", "validation_00002", "validation_00003"]


@pytest.fixture
def begun(tmp_path: Path) -> tuple[RunDirectory, Drifting]:
    """A run that has measured three steps, and has a checkpoint of two."""
    run, inputs = RunDirectory(tmp_path / "run"), Drifting(tmp_path)
    check(run, inputs.fingerprints(), step=0)
    for label in LABELS:
        write_json(run.evaluation_file(label), {"avg_at_k": [1.0]})
    check(run, inputs.fingerprints())  # the same
    return run, inputs


@pytest.mark.parametrize("name", DRIFTS)
def test_a_drift_is_refused_by_name_or_allowed_and_recorded(begun, name, capsys):
    run, inputs = begun
    drift, input_name = DRIFTS[name]
    drift(inputs)
    found = inputs.fingerprints()
    with pytest.raises(UserError, match=f"was begun with other inputs: {input_name}"):
        check(run, found)
    assert recorded_changes(run) == []
    assert all(run.evaluation_file(label).exists() for label in LABELS)
    check(run, found, allow_changes=True)
    assert f"warning: goes on with other inputs: {input_name}" in capsys.readouterr().err
    ((change),) = recorded_changes(run)
    assert change["step"] == 2 and [n[: len(input_name)] for n in change["inputs"]] == [
        input_name
    ]
    check(run, found, step=3)  # from now on these are the inputs


@pytest.mark.parametrize(
    ("drift", "kept"),
    {
        "train edited": ["before", "validation_00000", "validation_00002"],
        "critic": ["before", "validation_00000", "validation_00002"],
        "test reversed": ["validation_00000", "validation_00002"],
        "validation replaced": ["before"],
        "weights": [],
        "template": [],
        "adapter": [],
    }.items(),
)
def test_evaluations_that_no_longer_hold_are_set_aside(begun, drift, kept):
    """No gain pairs two problem sets or two bases, and no curve takes up another's points."""
    run, inputs = begun
    DRIFTS[drift][0](inputs)
    check(run, inputs.fingerprints(), allow_changes=True)
    assert [label for label in LABELS if run.evaluation_file(label).exists()] == kept
    aside = sorted(path.stem for path in (run.path / "set_aside" / "step_00002").iterdir())
    assert aside == sorted(set(LABELS) - set(kept))


def test_a_run_whose_inputs_nobody_knows_is_refused(begun):
    run, inputs = begun
    run.inputs_file.unlink()
    with pytest.raises(UserError, match=r"inputs\.json is missing, so nobody can tell"):
        check(run, inputs.fingerprints())
    check(run, inputs.fingerprints(), allow_changes=True)
    assert not run.evaluation_file("before").exists()  # nobody knows what it was measured on
    run.metrics_file.touch()
    for content in ("{}", '{"fingerprints": {}, "changes": 3}'):
        run.inputs_file.write_text(content)
        with pytest.raises(UserError, match=r"inputs\.json is damaged"):
            check(run, inputs.fingerprints())


def test_a_run_that_measured_nothing_takes_on_other_inputs(tmp_path):
    run, inputs = RunDirectory(tmp_path / "run"), Drifting(tmp_path)
    check(run, inputs.fingerprints(), step=0)
    inputs.problems["train"].reverse()
    check(run, inputs.fingerprints(), step=0)
    assert recorded_changes(run) == []


def test_what_a_filter_kept_is_an_input_too(tmp_path):
    """Known after the weights are read: on another machine it may keep others."""
    run, first, kept = RunDirectory(tmp_path), {"model weights": "1"}, "test kept by the filter"
    begins = Inputs(run, step=0, allow_changes=False)
    begins.check(first)
    begins.check({kept: "2"})
    write_json(run.evaluation_file("before"), {"avg_at_k": [1.0]})
    goes_on = Inputs(run, step=2, allow_changes=False)
    goes_on.check(first)
    goes_on.check({kept: "2"})
    with pytest.raises(UserError, match=f"begun with other inputs: {kept}; put back"):
        goes_on.check({kept: "3"})
    allowed = Inputs(run, step=2, allow_changes=True)
    allowed.check(first)
    allowed.check({kept: "3"})
    assert not run.evaluation_file("before").exists()
    Inputs(run, step=2, allow_changes=False).check({**first, kept: "3"})


def test_another_base_is_named_where_a_run_s_weights_are_used(begun, capsys):
    run, inputs = begun
    warn_of_another_model(run, inputs.model)
    assert capsys.readouterr().err == ""
    change_byte(inputs.model / "model.safetensors")
    warn_of_another_model(run, inputs.model)
    assert "was trained on another base: model weights in" in capsys.readouterr().err
    warn_of_other_problems(run, "test", inputs.problems["test"])
    assert capsys.readouterr().err == ""
    warn_of_other_problems(run, "test", inputs.problems["test"][:2])
    assert "warning: the test problems are not those that" in capsys.readouterr().err


def test_a_run_that_gets_longer_sets_its_end_aside_and_says_so(tmp_path):
    config = small_config(tmp_path, optimizer={"schedule": "constant"})
    run = open_run(config)
    check(run, {"model weights": "1"}, step=0)
    for path in (run.summary_file, run.evaluation_file("after"), run.evaluation_file("before")):
        write_json(path, {"avg_at_k": [1.0]})
    lengthen_run(run, config, step=4)
    assert run.summary_file.exists() and recorded_changes(run) == []
    longer = steps(config, 9, allow_changed_inputs=True)
    lengthen_run(run, longer, step=4)
    assert recorded_changes(run) == [{"step": 4, "num_steps": [4, 9]}]
    aside = run.path / "set_aside" / "step_00004"
    assert sorted(path.name for path in aside.iterdir()) == ["after.json", "summary.json"]
    assert not run.summary_file.exists() and run.evaluation_file("before").exists()
    # The key that allows a change is for one command.
    assert read_json(run.config_file)["train"] == config_json(steps(config, 9))["train"]


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


@pytest.mark.long
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
    finished = read_json(run.summary_file)
    with pytest.raises(UserError, match="begun with other inputs: test problems; put back"):
        train.train(longer)
    assert read_json(run.summary_file) == finished  # a refusal takes nothing away
    evaluate.main(["--run", str(run.path), "--evaluation.num_samples=1"])
    assert "warning: the test problems are not those that" in capsys.readouterr().err
    (tmp_path / "kept").rename(tmp_path / "test.jsonl")

    write_jsonl(run.metrics_file, [rows[0], rows[0]])
    with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl is not the whole row of"):
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
    run.evaluation_file("validation_00000").unlink()
    summary = train.train(longer)
    assert "goes on from step 2 of 3" in capsys.readouterr().err
    assert summary["changes"] == [{"step": 2, "num_steps": [2, 3]}]
    assert "Lengthened at step 2 from 2 to 3 steps." in summary_table(summary)
    assert not any(leftover.exists() for leftover in leftovers)
    assert read_jsonl(run.metrics_file)[:2] == rows
    assert read_json(run.config_file)["train"]["num_steps"] == 3
    whole = train.train(dataclasses.replace(longer, name="whole"))
    assert whole["after"] == summary["after"] and "changes" not in whole
    lengthened, other = (
        r.evaluation_file("validation_00000").read_bytes()
        for r in (run, RunDirectory.of(dataclasses.replace(longer, name="whole")))
    )
    assert lengthened == other  # measured before training, whenever that is
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
