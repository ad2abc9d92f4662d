# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""How a run looks in TensorBoard: plain names grouped by role, and its own row in HParams.

    tensorboard --logdir runs

| group | what it has |
|---|---|
| solver | the rollouts: how many are right, how long, cut off or in a loop |
| teacher | its advantages, and the contexts that it could not be given |
| critic | what it wrote, and how its replies ended |
| optimizer | loss, gradient, learning rate |
| validation, test | Avg@k and the like: at some steps, and at both ends of the run |
| time, speed, padding | seconds by phase, tokens per second, empty positions |

HParams has a row per run: the values of its config, and what it came to.
"""

import contextlib
import struct
from collections.abc import Mapping
from typing import Any

import tensorboardX
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import hparams

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.compared import config_json
from stepalign_jax.config.schema import Config
from stepalign_jax.runs.directory import RunDirectory

_TAGS = {
    "reward": "solver/correct_rollouts",
    "mean_tokens": "solver/tokens_per_rollout",
    "solver_tokens": "solver/tokens_sampled",
    "truncated": "solver/truncated_rollouts",
    "looping": "solver/looping_rollouts",
    "solver_logprob_mean": "solver/mean_logprob",
    "sampler_logprob_gap": "solver/sampler_and_scorer_gap",
    "advantage_mean": "teacher/mean_advantage",
    "advantage_abs_mean": "teacher/mean_absolute_advantage",
    "kl_on_markup": "teacher/divergence_on_markup",
    "contexts_failed": "teacher/contexts_failed",
    "loss": "optimizer/loss",
    "gradient_norm": "optimizer/gradient_norm",
    "learning_rate": "optimizer/learning_rate",
    "tokens_in_loss": "optimizer/tokens_in_loss",
    "total": "time/step_seconds",
    "compile_seconds": "time/compiling_seconds",
    "compilations": "time/programs_compiled",
}
_PREFIXES = {
    "context_failed/": "teacher/contexts_failed/",
    "critic_outcome/": "critic/outcome/",
    "critic_": "critic/",
    "validation_": "validation/",
    "grading_": "solver/grading_",
    "tokens_per_second_per_device/": "speed/tokens_per_second_per_device/",
    "padding/": "padding/",
}

# Scores of the test problems, and what HParams shows of a run beside its config.
_SCORES = ("avg_at_k", "pass_at_k", "maj_at_k", "greedy")
GAIN = "test/gain_in_avg_at_k"
OUTCOMES = (*(f"test/{name}" for name in _SCORES), GAIN, "validation/avg_at_k")
# Where a run lies, and texts that no column has room for.
_NO_HPARAMS = ("name", "runs_dir", "prompts")


def metric_tag(name: str) -> str:
    """The tag of a metric of metrics.jsonl; of one without a group, under `other`."""
    return _known_tag(name) or f"other/{name}"


def timing_tag(name: str) -> str:
    """The tag of a number of timings.jsonl; a plain name is the seconds of a phase."""
    return _known_tag(name) or f"time/{name}_seconds"


def _known_tag(name: str) -> str | None:
    for prefix, group in _PREFIXES.items():
        if name.startswith(prefix):
            return group + name.removeprefix(prefix)
    return _TAGS.get(name)


def hparam_values(config: Config) -> dict[str, bool | float | str]:
    """Returns the values of a config by dotted key, as HParams can compare them."""
    found: dict[str, bool | float | str] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, part in value.items():
                if key or name not in _NO_HPARAMS:
                    walk(part, f"{key}.{name}" if key else name)
        elif isinstance(value, list):
            found[key] = ",".join(map(str, value))
        elif value is not None:
            found[key] = value

    walk(config_json(config), "")
    return found


def start_session(tensorboard: tensorboardX.SummaryWriter, config: Config) -> None:
    """Gives a run its row in HParams; its outcomes come with `show_outcome`."""
    experiment, start, _ = hparams(hparam_values(config), dict.fromkeys(OUTCOMES, 0.0))
    for summary in (experiment, start):
        _file(tensorboard).add_summary(summary, 0)


def show_outcome(
    run: RunDirectory,
    summary: Mapping[str, Any],
    *,
    num_steps: int,
    text: str,
    images: Mapping[str, bytes],
) -> None:
    """Shows in TensorBoard what a run came to.

    Args:
      run: its directory.
      summary: of summary.json.
      num_steps: optimizer steps that it took.
      text: the table of before and after.
      images: PNG files by name.

    Raises:
      UserError: the files cannot be written.
    """
    _, _, end = hparams({}, {})
    try:
        with contextlib.closing(tensorboardX.SummaryWriter(logdir=str(run.tensorboard))) as to:
            for name in _SCORES:
                for step, side in ((0, "before"), (num_steps, "after")):
                    if summary[side].get(name) is not None:
                        to.add_scalar(f"test/{name}", summary[side][name]["mean"], step)
            to.add_scalar(GAIN, summary["gain"]["avg_at_k"]["mean"], num_steps)
            add_verbatim(to, "summary", text, num_steps)
            for name, png in images.items():
                _file(to).add_summary(_image(f"figures/{name}", png), num_steps)
            _file(to).add_summary(end, num_steps)
    except OSError as error:
        raise UserError(f"cannot write to {run.tensorboard}: {error.strerror}") from error


def add_verbatim(
    tensorboard: tensorboardX.SummaryWriter, tag: str, text: str, step: int
) -> None:
    """Shows a text as it is."""
    # TensorBoard renders Markdown, and an indented block is the one form that no content of
    # the text can break out of.
    tensorboard.add_text(tag, "    " + text.replace("\n", "\n    "), step)


def _image(tag: str, png: bytes) -> Summary:
    width, height = struct.unpack(">II", png[16:24])  # where every PNG file has them
    image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _file(tensorboard: tensorboardX.SummaryWriter) -> Any:
    assert tensorboard.file_writer is not None
    return tensorboard.file_writer
