# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import io
import struct
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from support.run_files import make_summary
from support.runs import small_config
from support.tensorboard import read_events
from tensorboardX.proto.plugin_hparams_pb2 import (  # type: ignore[attr-defined]
    HParamsPluginData,
)

from stepalign_jax.base.errors import UserError
from stepalign_jax.report.figures import run_images
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.metrics import MetricsWriter
from stepalign_jax.runs.tensorboard import (
    OUTCOMES,
    hparam_values,
    metric_tag,
    show_outcome,
    timing_tag,
)

PIXEL = (
    b"\x89PNG\r\n\x1a\n"
    + struct.pack(">I4sII", 13, b"IHDR", 3, 2)
    + b"\x08\x06\0\0\0"
    + b"...."
)


def values_of(run: RunDirectory) -> dict[tuple[str, int], Any]:
    events = read_events(run.tensorboard)
    return {(v.tag, e.step): v for e in events for v in e.summary.value}


def hparams_of(run: RunDirectory, part: str) -> Any:
    """The content of one of the three records that HParams reads."""
    (value,) = (v for (tag, _), v in values_of(run).items() if tag == f"_hparams_/{part}")
    content = value.metadata.plugin_data.content
    assert value.metadata.plugin_data.plugin_name == "hparams"
    return getattr(HParamsPluginData.FromString(content), part)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("reward", "solver/correct_rollouts"),
        ("looping", "solver/looping_rollouts"),
        ("advantage_mean", "teacher/mean_advantage"),
        ("context_failed/empty", "teacher/contexts_failed/empty"),
        ("critic_exact_on_wrong", "critic/exact_on_wrong"),
        ("critic_outcome/accepted", "critic/outcome/accepted"),
        ("gradient_norm", "optimizer/gradient_norm"),
        ("validation_avg_at_k", "validation/avg_at_k"),
        ("something_new", "other/something_new"),
    ],
)
def test_metrics_stand_in_the_group_of_their_role(name, tag):
    assert metric_tag(name) == tag


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("sample", "time/sample_seconds"),
        ("total", "time/step_seconds"),
        ("compile_seconds", "time/compiling_seconds"),
        ("tokens_per_second_per_device/update", "speed/tokens_per_second_per_device/update"),
        ("padding/head", "padding/head"),
        ("critic_asked", "critic/asked"),
    ],
)
def test_timings_stand_in_groups(name, tag):
    assert timing_tag(name) == tag


def test_hparams_have_every_value_of_the_config_but_places_and_prompts(tmp_path):
    found = hparam_values(small_config(tmp_path))
    assert found["condition"] == "stepalign" and found["train.num_steps"] == 4
    assert found["optimizer.learning_rate"] == 3e-4
    assert found["train.allow_changed_inputs"] is False
    assert found["objective.token_weights"] == ""
    assert not [key for key in found if key.startswith(("prompts", "runs_dir", "name"))]


def test_a_run_has_a_row_in_hparams_from_its_start(tmp_path):
    run, config = RunDirectory(tmp_path), small_config(tmp_path)
    writer = MetricsWriter(run, num_completed_steps=0)
    writer.start_session(config)
    writer.close()
    start = hparams_of(run, "session_start_info").hparams
    assert start["condition"].string_value == "stepalign"
    assert start["optimizer.learning_rate"].number_value == 3e-4
    assert start["train.allow_changed_inputs"].bool_value is False
    experiment = hparams_of(run, "experiment")
    assert {info.name for info in experiment.hparam_infos} == set(hparam_values(config))
    assert tuple(info.name.tag for info in experiment.metric_infos) == OUTCOMES


def test_two_configs_differ_in_hparams_where_they_differ(tmp_path):
    config = small_config(tmp_path)
    rate = dataclasses.replace(config.optimizer, learning_rate=1e-3)
    one, other = map(hparam_values, (config, dataclasses.replace(config, optimizer=rate)))
    assert {key for key in one if one[key] != other[key]} == {"optimizer.learning_rate"}


def test_the_outcome_has_scores_at_both_ends_a_table_and_figures(tmp_path):
    run, summary = RunDirectory(tmp_path), make_summary(0.25, 0.75)
    show_outcome(run, summary, num_steps=60, text="a table", images={"loss": PIXEL})
    found = values_of(run)
    scores = {key: v.simple_value for key, v in found.items() if key[0].startswith("test/")}
    assert scores == {
        **{(f"test/{n}_at_k", 0): 0.25 for n in ("avg", "pass", "maj")},
        **{(f"test/{n}_at_k", 60): 0.75 for n in ("avg", "pass", "maj")},
        ("test/greedy", 0): 0.25,
        ("test/greedy", 60): 0.75,
        ("test/gain_in_avg_at_k", 60): 0.5,
    }
    assert set(OUTCOMES) - {tag for tag, _ in scores} == {"validation/avg_at_k"}
    (text,) = found["summary/text_summary", 60].tensor.string_val
    assert text == b"    a table"
    image = found["figures/loss", 60].image
    assert (image.width, image.height, image.encoded_image_string) == (3, 2, PIXEL)
    assert hparams_of(run, "session_end_info").status == 1  # success


def test_the_figures_of_a_run_are_images(tmp_path):
    run = RunDirectory(tmp_path)
    writer = MetricsWriter(run, num_completed_steps=0)
    writer.write(0, {"loss": 0.5})
    writer.close()
    images = run_images(run)
    assert list(images) == ["loss"]
    pixels = imread(io.BytesIO(images["loss"]))
    assert pixels.shape == (348, 528, 4) and np.ptp(pixels[..., :3]) > 0.9


def test_files_that_cannot_be_written(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*tensorboard"):
        show_outcome(RunDirectory(tmp_path), make_summary(), num_steps=1, text="", images={})
