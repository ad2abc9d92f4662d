# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Rollouts as a log of Inspect (inspect_ai), for `inspect view` and `inspect log dump`.

Inspect's own library writes the file (the extra `inspect`): what is in a `.eval` file has
changed more than once. docs/exports.md says which field holds what.
"""

import datetime
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.version import package_version
from stepalign_jax.exporting.told import Told

_LOWEST = -sys.float_info.max  # in place of minus infinity, where a number has to stand


class LogHead(NamedTuple):
    """What a log says of all its rollouts.

    Attributes:
      task: the run's name.
      model: the path or name of the model.
      dataset: the set of problems.
      metadata: anything else that JSON holds.
    """

    task: str
    model: str
    dataset: str
    metadata: dict[str, Any]


def write_inspect_log(
    path: Path, head: LogHead, rollouts: Sequence[Told], token: Callable[[int], str]
) -> None:
    """Writes a `.eval` file.

    Args:
      path: it ends in `.eval`.
      head: of the log.
      rollouts: one sample each.
      token: the text of a token.

    Raises:
      UserError: the name ends otherwise, the extra is not installed, or the file cannot be
        written.
    """
    if path.suffix != ".eval":
        raise UserError(f"{path} is no name of an Inspect log: give one that ends in .eval")
    inspect = _import_inspect()
    logs = inspect.log
    samples = [_sample(inspect, told, head.model, token) for told in rollouts]
    log = logs.EvalLog(
        status="success",
        eval=logs.EvalSpec(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            task=head.task,
            dataset=logs.EvalDataset(
                name=head.dataset,
                samples=len(samples),
                sample_ids=[told.id for told in rollouts],
            ),
            model=head.model,
            config=logs.EvalConfig(epochs=1),
            packages={"stepalign_jax": package_version()},
            metadata=head.metadata,
        ),
        results=_results(logs, rollouts),
        samples=samples,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial.eval")
    try:
        logs.write_eval_log(log, str(partial))
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)


def _import_inspect() -> Any:
    try:
        import inspect_ai.log  # pyright: ignore[reportMissingImports]
        import inspect_ai.model  # pyright: ignore[reportMissingImports]
        import inspect_ai.scorer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "an Inspect log is written by the package inspect_ai: install it with "
            "pip install 'stepalign_jax[inspect]'."
        ) from error
    return inspect_ai


def _sample(inspect: Any, told: Told, model: str, token: Callable[[int], str]) -> Any:
    models = inspect.model
    answer = models.ChatMessageAssistant(content=told.text, model=model, source="generate")
    choice = models.ChatCompletionChoice(
        message=answer, logprobs=_logprobs(models, told, token)
    )
    return inspect.log.EvalSample(
        id=told.id,
        epoch=1,
        input=told.problem,
        target=told.answer,
        messages=[models.ChatMessageUser(content=told.problem, source="input"), answer],
        output=models.ModelOutput(
            model=model,
            choices=[choice],
            usage=models.ModelUsage(
                input_tokens=len(told.prompt),
                output_tokens=len(told.tokens),
                total_tokens=len(told.prompt) + len(told.tokens),
            ),
        ),
        scores={"correct": inspect.scorer.Score(value="C" if told.correct else "I")},
        metadata=sample_metadata(told),
    )


def sample_metadata(told: Told) -> dict[str, Any]:
    """What Inspect has no field for."""
    return {
        "step": told.step,
        "token_ids": told.tokens,
        "contexts": told.contexts,
        "failures": told.failures,
        "advantages": {name: _finite(values) for name, values in told.advantages.items()},
        "kl": {name: _finite(values) for name, values in told.kl.items()},
        "solver_entropy": None if told.entropy is None else _finite(told.entropy),
    }


def _finite(values: Sequence[float]) -> list[float | None]:
    """JSON has no infinite numbers."""
    return [value if math.isfinite(value) else None for value in values]


def _logprobs(models: Any, told: Told, token: Callable[[int], str]) -> Any:
    """The solver's log-probabilities with its likeliest tokens; None where they are unknown."""
    if told.logprobs is None or told.top is None:
        return None
    return models.Logprobs(
        content=[
            models.Logprob(
                token=token(sampled),
                logprob=max(logprob, _LOWEST),
                top_logprobs=[
                    models.TopLogprob(token=token(other), logprob=max(value, _LOWEST))
                    for other, value in likeliest
                ],
            )
            for sampled, logprob, likeliest in zip(
                told.tokens, told.logprobs, told.top, strict=True
            )
        ]
    )


def _results(logs: Any, rollouts: Sequence[Told]) -> Any:
    """The share of right rollouts."""
    share = sum(told.correct for told in rollouts) / max(1, len(rollouts))
    return logs.EvalResults(
        total_samples=len(rollouts),
        completed_samples=len(rollouts),
        scores=[
            logs.EvalScore(
                name="correct",
                scorer="correct",
                metrics={"accuracy": logs.EvalMetric(name="accuracy", value=share)},
            )
        ],
    )
