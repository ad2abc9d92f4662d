# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp
import numpy as np
import pytest
from support.tensorboard import read_events
from tensorboardX.proto.event_pb2 import SessionLog  # type: ignore[attr-defined]

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_jsonl
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.metrics import (
    MetricsWriter,
    NonFiniteError,
    require_finite,
)


def test_rows_are_the_same_bytes_whatever_the_order_and_number_type(tmp_path):
    for name, metrics in {
        "a": {"loss": 0.1, "accuracy": None, "count": 3},
        "b": {"count": np.int64(3), "accuracy": None, "loss": np.float64(0.1)},
    }.items():
        (tmp_path / name).mkdir()
        writer = MetricsWriter(RunDirectory(tmp_path / name), num_completed_steps=0)
        writer.write(7, metrics)
        writer.close()
    a, b = (RunDirectory(tmp_path / name).metrics_file.read_bytes() for name in "ab")
    assert a == b == b'{"accuracy": null, "count": 3.0, "loss": 0.1, "step": 7}\n'


def test_float32_reads_back_to_the_bit_before_close(tmp_path):
    run = RunDirectory(tmp_path)
    writer = MetricsWriter(run, num_completed_steps=0)
    value = jnp.float32(1) / 3
    writer.write(0, {"loss": value})  # type: ignore[dict-item]
    (row,) = read_jsonl(run.metrics_file)  # a kill now loses nothing
    assert np.float32(row["loss"]) == value
    writer.close()


def test_resumed_writer_appends_and_keeps_timings_apart(tmp_path):
    run = RunDirectory(tmp_path)
    for step in range(2):
        writer = MetricsWriter(run, num_completed_steps=step)
        writer.write(step, {"loss": 0.5})
        writer.write_timings(step, {"sample_secs": 1.5 + step})
        writer.close()
    assert read_jsonl(run.metrics_file) == [{"loss": 0.5, "step": s} for s in range(2)]
    assert [row["sample_secs"] for row in read_jsonl(run.timings_file)] == [1.5, 2.5]


def test_tensorboard_has_scalars_texts_and_the_purge_mark(tmp_path):
    run = RunDirectory(tmp_path)
    writer = MetricsWriter(run, num_completed_steps=4)
    writer.write(4, {"loss": 0.5, "critic_exactness": None})
    writer.write_timings(4, {"sample": 2.0})
    writer.add_text(4, "rollout", "Step 1: 3*8=24\n# Answer: 71")
    writer.close()
    events = read_events(run.tensorboard)
    values = {(v.tag, e.step): v for e in events for v in e.summary.value}
    scalars = {
        key: v.simple_value for key, v in values.items() if key[0] != "rollout/text_summary"
    }
    assert scalars == {("optimizer/loss", 4): 0.5, ("time/sample_seconds", 4): 2.0}
    (text,) = values["rollout/text_summary", 4].tensor.string_val
    assert text == b"    Step 1: 3*8=24\n    # Answer: 71"
    marks = [e.step for e in events if e.session_log.status == SessionLog.START]
    assert marks == [4]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("-inf")])
def test_non_finite_metric_is_named_and_not_written(tmp_path, value):
    run = RunDirectory(tmp_path)
    writer = MetricsWriter(run, num_completed_steps=0)
    with pytest.raises(NonFiniteError, match=rf"loss is {float(value)} at step 3: .*diverged"):
        writer.write(3, {"accuracy": 1.0, "loss": value})
    writer.close()
    assert run.metrics_file.read_bytes() == b""


def test_non_finite_is_a_user_error_and_a_runtime_error():
    require_finite(0, {"loss": 0.0, "nothing": None})
    for kind in (UserError, RuntimeError):
        with pytest.raises(kind):
            require_finite(0, {"loss": float("nan")})


def test_a_value_called_step_is_not_lost_in_silence(tmp_path):
    writer = MetricsWriter(RunDirectory(tmp_path), num_completed_steps=0)
    for write in (writer.write, writer.write_timings):
        with pytest.raises(ValueError, match="name the value otherwise"):
            write(0, {"step": 1.5})
    writer.close()


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write metrics to .*Not a directory"):
        MetricsWriter(RunDirectory(tmp_path / "file"), num_completed_steps=0)
