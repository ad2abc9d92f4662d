# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Pre-training at a size where it learns nothing: what it writes, repeats and refuses."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.load import load_config
from stepalign_jax.config.schema import Config
from stepalign_jax.huggingface.tokenizer import load_tokenizer
from stepalign_jax.huggingface.weights import load_model
from stepalign_jax.pretrain import main
from stepalign_jax.tiny import pretraining as pretrain_module
from stepalign_jax.tiny.corpus import CLEAN, ROW_KINDS, Corpus
from stepalign_jax.tiny.pretraining import (
    NATURAL,
    STAGES,
    batches,
    make_pretraining_optimizer,
    mixture_at,
    pretrain,
)
from stepalign_jax.tiny.tokenizer import VOCABULARY, encode

TINY = str(Path(__file__).parents[2] / "configs" / "tiny.py")
# One shape of batch, so that one run compiles one step.
MIXTURES = [mixture._replace(long_share=1.0) for _, mixture in STAGES[0].phases]
SHRUNK = replace(
    STAGES[0],
    num_steps=4,
    tokens_per_step=256,
    warmup_steps=1,
    phases=((0.5, MIXTURES[0]), (1.0, MIXTURES[-1])),
    model=replace(
        STAGES[0].model,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=16,
    ),
)


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(TINY)


def once(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, but every call after the first returns what the first made."""
    kept: list[Any] = []

    def make_or_keep(*arguments: Any) -> Any:
        kept.append(kept[0] if kept else make(*arguments))
        return kept[0]

    return make_or_keep


@pytest.fixture(scope="module")
def run(config: Config) -> Callable[..., None]:
    """Pre-trains the shrunk recipe; all runs share one compilation, nothing else."""
    makers = {
        name: once(getattr(pretrain_module, name))
        for name in ("make_step", "make_kind_accuracies")
    }

    def run(
        directory: Path,
        log_every_steps: int,
        stages: Any = (SHRUNK,),
        *,
        overwrite: bool = False,
        config: Config = config,
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, make in makers.items():
                patch.setattr(pretrain_module, name, make)
            pretrain(config, stages, directory, log_every_steps, overwrite=overwrite)

    return run


@pytest.fixture
def run_stages(run: Any) -> Callable[[Any, Path], None]:
    return lambda stages, directory: run(directory, 2, stages)


@pytest.fixture(scope="module")
def checkpoint(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pretrain") / "made" / "on the way"
    run(directory, 2)
    return directory


@pytest.mark.long
def test_the_checkpoint_loads_as_any_other(checkpoint):
    model, params = load_model(str(checkpoint))
    assert model == SHRUNK.model
    assert params["embedding"].shape == (len(VOCABULARY), 16)
    tokenizer = load_tokenizer(checkpoint)
    text = "Step 1: 3*8=24\n"
    assert tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) == encode(text)
    assert {path.name for path in checkpoint.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "pretraining.jsonl",
    }


def test_the_log_has_a_row_per_period(checkpoint):
    lines = (checkpoint / "pretraining.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    assert [row["step"] for row in log] == [2, 4]
    for row in log:
        assert 0 < row["loss"] < 10 and 0 <= row["accuracy"] <= 1
        assert set(row["accuracy_by_kind"]) == set(ROW_KINDS)
        assert 0 < row["tokens"] <= row["step"] * SHRUNK.tokens_per_step
    assert log[0]["tokens"] < log[1]["tokens"]


def test_the_same_seed_makes_the_same_weights_however_often_it_logs(run, checkpoint, tmp_path):
    run(tmp_path, 100)
    again = (tmp_path / "model.safetensors").read_bytes()
    assert again == (checkpoint / "model.safetensors").read_bytes()
    assert len((tmp_path / "pretraining.jsonl").read_text().splitlines()) == 1


def test_another_seed_makes_another_base(config, run, checkpoint, tmp_path):
    run(tmp_path, 100, config=replace(config, seed=1))
    other = (tmp_path / "model.safetensors").read_bytes()
    assert other != (checkpoint / "model.safetensors").read_bytes()


def test_a_batch_depends_on_the_seed_and_its_number(config):
    corpus = Corpus(config.prompts, "answer")
    first, again, other = (
        list(batches(corpus, replace(SHRUNK, num_steps=2), seed)) for seed in (0, 0, 1)
    )
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left.tokens, right.tokens)
    drawn = [first[0].tokens, first[1].tokens, other[0].tokens]
    assert len({tokens.tobytes() for tokens in drawn}) == 3


def test_each_step_has_its_phase_and_only_the_last_forgets_carries():
    steps = {0: 0, 999: 0, 1000: 1, 2999: 1, 3000: 2, 4999: 2}
    for step, phase in steps.items():
        assert mixture_at(STAGES[0], step) is STAGES[0].phases[phase][1]
    mixtures = [mixture for stage in STAGES for _, mixture in stage.phases]
    forgetting = [mixture.solver_slips.forget_carry for mixture in mixtures]
    assert forgetting[:2] == [0.0, 0.0] and min(forgetting[2:]) > 0.9
    for mixture in mixtures:
        assert sum(getattr(mixture, kind) for kind in ROW_KINDS) == pytest.approx(1.0)


def test_the_natural_recipe_plants_nothing():
    mixtures = [mixture for stage in NATURAL for _, mixture in stage.phases]
    assert {mixture.solver_slips for mixture in mixtures} == {CLEAN}
    for mixture in mixtures:
        assert sum(getattr(mixture, kind) for kind in ROW_KINDS) == pytest.approx(1.0)
        assert 0 < mixture.long_share < 0.2


@pytest.mark.long
def test_stages_follow_one_another_and_a_later_one_goes_on_from_the_files(run_stages, tmp_path):
    stages = [replace(SHRUNK, num_steps=2), replace(SHRUNK, num_steps=2, first_step=2)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_stages(stages, whole)
    run_stages(stages[:1], parts)
    run_stages(stages[1:], parts)
    log = [json.loads(r) for r in (parts / "pretraining.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [2, 4]
    assert log[1]["tokens"] > log[0]["tokens"] and log[1]["seconds"] > log[0]["seconds"]
    made = [(d / "model.safetensors").read_bytes() for d in (whole, parts)]
    assert made[0] == made[1]


def test_the_stages_of_the_packaged_model_count_on():
    assert STAGES[0].first_step == 0
    for before, after in itertools.pairwise(STAGES):
        assert after.first_step == before.first_step + before.num_steps
        assert after.model == before.model


@pytest.mark.parametrize("rate", ["learning_rate", "adam_learning_rate"])
def test_kernels_and_the_rest_have_learning_rates_of_their_own(rate):
    optimizer = make_pretraining_optimizer(replace(SHRUNK, **{rate: 0.0}))
    params: Any = {
        "embedding": jnp.ones((4, 3)),
        "layer_0": {"kernel": jnp.eye(3), "norm": jnp.ones(3)},
    }
    gradient, state = params, optimizer.init(params)
    first, state = optimizer.update(gradient, state, params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(first))  # warm-up starts at 0
    second, _ = optimizer.update(gradient, state, params)
    frozen = rate == "learning_rate"
    assert bool(second["layer_0"]["kernel"].any()) is not frozen
    assert bool(second["embedding"].any()) is frozen
    assert bool(second["layer_0"]["norm"].any()) is frozen


@pytest.mark.parametrize("below", [".", "below"])
def test_a_place_that_cannot_be_written_is_refused(config, tmp_path, below):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"is a file|cannot write to .*choose another"):
        pretrain(config, (SHRUNK,), tmp_path / "file" / below, 2, overwrite=False)


def test_a_loss_that_is_no_number_ends_the_run(config, tmp_path, monkeypatch):
    def step(params: Any, state: Any, batch: Any) -> Any:
        return params, state, jnp.float32(jnp.nan), jnp.float32(0.0)

    monkeypatch.setattr(pretrain_module, "make_step", lambda *_: step)
    monkeypatch.setattr(pretrain_module, "make_kind_accuracies", lambda *_: lambda *_: {})
    with pytest.raises(UserError, match="diverged before step 2"):
        pretrain(config, (SHRUNK,), tmp_path / "to", 2, overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(20)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_to_draw_ends_the_run_and_does_not_hang_it(config, monkeypatch):
    def fail(*_: Any) -> Any:
        raise RuntimeError("no row today")

    monkeypatch.setattr(pretrain_module, "draw_batch", fail)
    with pytest.raises(RuntimeError, match="no row today"):
        next(batches(Corpus(config.prompts, "answer"), SHRUNK, 0))


@pytest.mark.timeout(20)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_misspelt_template_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_module, "STAGES", (SHRUNK,))
    arguments = ["--config", TINY, "--to", str(tmp_path), "--prompts.solver={probelm}"]
    with pytest.raises(UserError, match="probelm"):
        main(arguments)


def test_the_command_needs_a_place_to_write():
    with pytest.raises(UserError, match="--to"):
        main(["--config", TINY])


def test_a_directory_with_a_model_is_not_overwritten(tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(UserError, match=r"exists and holds files.* pass --overwrite"):
        main(["--config", "tiny", "--to", str(tmp_path)])
    for argument in ("--overwrite", "--from-stage=1"):
        with pytest.raises(UserError, match=r"no pre-trained model .no pretraining\.jsonl"):
            main(["--config", "tiny", "--to", str(tmp_path), argument])
    assert (tmp_path / "model.safetensors").read_text() == "mine"


def test_a_stopped_pretraining_leaves_the_model_that_was_there(checkpoint, tmp_path, config):
    target = tmp_path / "model"
    shutil.copytree(checkpoint, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain_module, "make_step", lambda *_: stop)
        pretrain(config, (SHRUNK,), target, 2, overwrite=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert list(tmp_path.iterdir()) == [target]


def test_an_earlier_model_is_replaced_when_asked(checkpoint, run, tmp_path):
    target = tmp_path / "model"
    shutil.copytree(checkpoint, target)
    (target / "model.safetensors").write_text("old")
    run(target, 2, overwrite=True)
    made = (target / "model.safetensors").read_bytes()
    assert made == (checkpoint / "model.safetensors").read_bytes()
