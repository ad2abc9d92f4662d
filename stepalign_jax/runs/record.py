# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What is kept of one optimizer step: metrics, rates, and a row per rollout."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import write_jsonl
from stepalign_jax.config.schema import Config
from stepalign_jax.critics.protocol import CriticReply
from stepalign_jax.feedback.contexts import Context, count_failures, describe_failures
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.objectives.divergence import LossScores
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.metrics import MetricsWriter
from stepalign_jax.runs.phases import Batch, Critiques, Samples
from stepalign_jax.runs.repetition import ends_in_loop
from stepalign_jax.runs.stopwatch import padding_shares, token_rates
from stepalign_jax.training.optimizer import learning_rate_at
from stepalign_jax.training.packing import unpack

# Sampler and scorer run the same forward: a larger gap than rounding means a broken alignment.
LARGEST_LOGPROB_GAP = {"float32": 1e-3, "bfloat16": 1.0, "float16": 0.3}


class StepResults(NamedTuple):
    """One optimizer step, done.

    Attributes:
      step: counted from 0.
      samples: the rollouts.
      correct: [B] bool.
      critiques: the contexts and what the critic said.
      batch: the arrays that were scored.
      metrics: of the update, on the device.
      scores: of the update, by micro-batch.
      seconds: by phase.
      compiled: how many programs were compiled, and their seconds.
      ungraded: answers that could not be judged since the step before; they count as wrong.
    """

    step: int
    samples: Samples
    correct: np.ndarray
    critiques: Critiques
    batch: Batch
    metrics: Mapping[str, Any]
    scores: list[LossScores]
    seconds: dict[str, float]
    compiled: dict[str, float]
    ungraded: dict[str, int]

    @property
    def contexts(self) -> list[Context]:
        """[B] What each rollout trains by: its target where there is one, else its context."""
        targets = self.batch.targets
        return self.critiques.contexts if targets is None else targets


def step_metrics(results: StepResults, *, compute_dtype: str) -> dict[str, float | None]:
    """Metrics of metrics.jsonl: those of the update, and those of the rollouts' texts.

    Raises:
      UserError: on the first step, sampler and scorer disagree by more than rounding.
    """
    gap = logprob_gap(results)
    if results.step == 0 and gap is not None:
        check_logprob_gap(gap, compute_dtype)
    rollouts = results.samples.rollouts
    failures = count_failures(results.contexts)
    return {
        **results.metrics,
        "reward": float(results.correct.mean()),
        "mean_tokens": float(rollouts.lengths.mean()),
        "solver_tokens": float(rollouts.lengths.sum()),
        "truncated": float(1.0 - rollouts.finished.mean()),
        "looping": float(ends_in_loop(rollouts.tokens, rollouts.lengths).mean()),
        "sampler_logprob_gap": gap,
        "contexts_failed": float(sum(failures.values())),
        **{f"context_failed/{name}": float(n) for name, n in failures.items() if n},
        **_kl_on_markup(results),
        "critic_exact_on_wrong": results.critiques.exact_share,
        **_critic_tokens(results.critiques.reply),
        **_critic_outcomes(results.critiques.reply),
    }


def logprob_gap(results: StepResults) -> float | None:
    """The largest |log-probability when sampled - when scored| of a token that counts.

    None where other tokens are scored than were sampled.
    """
    if results.batch.targets is not None:
        return None
    gaps = np.abs(_scores(results).solver_logprobs - results.samples.rollouts.logprobs)
    layouts = [micro_batch.layout for micro_batch in results.batch.micro_batches]
    return max(float(gaps[layout.index].max(initial=0.0)) for layout in layouts)


def _kl_on_markup(results: StepResults) -> dict[str, float | None]:
    """The share of the summed |divergence| that falls on tokens that are markup.

    It is of the losses before their weights, so that `markup_off` does not hide it. {} where
    no teacher is asked; None where both sides agree on every token.
    """
    if results.batch.teacher is None:
        return {}
    losses = np.abs(_scores(results).loss, dtype=np.float64)
    total = float(losses.sum())
    on_markup = float(losses[results.batch.markup].sum())
    return {"kl_on_markup": on_markup / total if total else None}


def check_logprob_gap(gap: float, compute_dtype: str) -> None:
    """Refuses to train where sampler and scorer disagree.

    Raises:
      UserError: `gap` is larger than rounding in `compute_dtype` explains.
    """
    limit = LARGEST_LOGPROB_GAP[compute_dtype]
    if gap > limit:
        raise UserError(
            f"log-probabilities of sampler and scorer differ by {gap:.2g} on the first "
            f"rollouts (rounding explains {limit:.2g}): training on them would be wrong, so "
            "please report this with the run's config.json."
        )


def _scores(results: StepResults) -> LossScores:
    """Scores as NumPy arrays [B, T], rows as in `results.samples`; 0 where none counts."""
    layouts = [micro_batch.layout for micro_batch in results.batch.micro_batches]
    return unpack(layouts, results.scores, np.shape(results.samples.rollouts.tokens))


def _critic_tokens(reply: CriticReply | None) -> dict[str, float | None]:
    """What the critiques of a step took; thinking counts."""
    if reply is None or not reply.lengths:
        return {"critic_tokens": 0.0, "critic_mean_tokens": None, "critic_truncated": None}
    return {
        "critic_tokens": float(np.sum(reply.lengths)),
        "critic_mean_tokens": float(np.mean(reply.lengths)),
        "critic_truncated": float(1.0 - np.mean(reply.finished)),
    }


def _critic_outcomes(reply: CriticReply | None) -> dict[str, float]:
    """How the questions of a step ended; their numbers add up to `critic_requests`."""
    if reply is None or not reply.outcomes:
        return {}
    counts = Counter(reply.outcomes)
    return {
        "critic_requests": float(counts.total()),
        **{f"critic_outcome/{name}": float(n) for name, n in sorted(counts.items())},
        **({} if reply.usage is None else {"critic_cost": reply.usage.cost}),
    }


class EmptySteps:
    """Watches for steps from which nothing is learnt: no usable context, or no gradient."""

    def __init__(self, most: int):
        """Args: `most` in a row without a usable context end the run; 0: never."""
        self._most, self._in_a_row = most, 0
        self._flat = False  # whether a missing gradient was warned of

    def see(self, results: StepResults) -> None:
        """Warns of an empty step, and once of a step without a gradient.

        Raises:
          UserError: it is one empty step too many in a row.
        """
        contexts = results.contexts
        if any(context.failure is None for context in contexts):
            self._in_a_row = 0
            self._see_gradient(results)
            return
        self._in_a_row += 1
        counts, mend = describe_failures(contexts)
        words = f"no rollout of step {results.step} has a usable context: {counts}; {mend}"
        if self._in_a_row == self._most:
            raise UserError(
                f"{words}. That makes {self._most} such steps in a row "
                "(train.max_empty_steps), from which nothing is learnt"
            )
        print(f"warning: {words}", file=sys.stderr, flush=True)

    def _see_gradient(self, results: StepResults) -> None:
        # Without a teacher none comes of answers that are all right, or all wrong: no fault.
        metrics, distils = results.metrics, results.batch.teacher is not None
        if self._flat or not distils or float(metrics["gradient_norm"]) != 0.0:
            return
        self._flat = True
        print(
            f"warning: gradient_norm is exactly 0 at step {results.step}, although "
            f"{float(metrics['tokens_in_loss']):.0f} tokens count: teacher and solver agree on "
            "all of them, objective.token_weights are 0, or the weights are broken (see the "
            "rollouts)",
            file=sys.stderr,
            flush=True,
        )


def rollout_rows(
    results: StepResults, ends: Callable[[Sequence[int], str], list[int]]
) -> Iterator[dict[str, Any]]:
    """One JSON row per rollout.

    Lists have one entry per token: `tokens`; `ends`, one past the last character of the text
    that the token writes; `logprobs` of the solver as it sampled, at temperature 1; `advantage`
    and `loss`, before its weight. The last two are null where the context failed, and where
    other tokens were scored. Numbers have five decimals.

    Args:
      results: of the step.
      ends: (tokens, text) -> see `Roles.ends`.
    """
    samples, targets = results.samples, results.batch.targets
    rollouts = samples.rollouts
    nothing = np.zeros(np.shape(rollouts.tokens))
    scores = None if targets else _scores(results)
    advantages, losses = (scores.advantage, scores.loss) if scores else (nothing, nothing)
    for i, (attempt, context) in enumerate(
        zip(samples.attempts, results.contexts, strict=True)
    ):
        counted = slice(int(rollouts.lengths[i]))
        tokens = np.asarray(rollouts.tokens[i, counted]).tolist()
        unscored = bool(context.failure or targets)
        yield {
            "problem": attempt.problem.text,
            "answer": attempt.problem.answer,
            "rollout": attempt.text,
            "tokens": tokens,
            "ends": ends(tokens, attempt.text),
            "logprobs": _five_decimals(rollouts.logprobs[i, counted]),
            "finished": bool(rollouts.finished[i]),
            "correct": bool(results.correct[i]),
            "context": context.text,
            "failure": context.failure,
            "advantage": None if unscored else _five_decimals(advantages[i, counted]),
            "loss": None if unscored else _five_decimals(losses[i, counted]),
        }


def _five_decimals(values: Any) -> list[float]:
    return [round(float(value), 5) for value in values]


def step_timings(results: StepResults, *, num_devices: int) -> dict[str, float]:
    """Rows of timings.jsonl: seconds, rates, padding, compilations, answers not judged."""
    batch, reply = results.batch, results.critiques.reply
    num_tokens = {
        "sample": int(results.samples.rollouts.lengths.sum()),
        "critique": sum(reply.lengths) if reply is not None else 0,
        "score": batch.teacher_tokens,
        "update": batch.solver_tokens,
    }
    rows = [micro_batch.solver for micro_batch in batch.micro_batches]
    counts = [micro_batch.layout.counts for micro_batch in batch.micro_batches]
    positions = {
        "update": (batch.solver_tokens, sum(r.tokens.size for r in rows)),
        "head": (sum(int(c.sum()) for c in counts), sum(c.size for c in counts)),
    }
    if batch.teacher is not None:
        size = sum(r.tokens.size for r in batch.teacher)
        positions["score"] = (batch.teacher_tokens, size)
    return {
        **results.seconds,
        "total": sum(results.seconds.values()),
        **results.compiled,
        # Not in metrics.jsonl: a run that goes on finds in its store what it asked before.
        **_critic_usage(reply),
        # Not in metrics.jsonl: which answers run out of time depends on the machine.
        **results.ungraded,
        **token_rates(results.seconds, num_tokens, num_devices),
        **padding_shares(positions),
    }


def _critic_usage(reply: CriticReply | None) -> dict[str, float]:
    if reply is None or reply.usage is None:
        return {}
    usage = reply.usage
    return {"critic_asked": float(usage.asked), "critic_from_store": float(usage.from_store)}


def record_step(
    run: RunDirectory,
    writer: MetricsWriter,
    empty_steps: EmptySteps,
    results: StepResults,
    config: Config,
    *,
    roles: Roles,
    num_devices: int,
) -> str:
    """Writes all that is kept of a step; returns a few words for the progress bar.

    Raises:
      UserError: the step's numbers cannot be trusted, or a file cannot be written.
    """
    step, train = results.step, config.train
    metrics = step_metrics(results, compute_dtype=config.model.compute_dtype)
    rate = learning_rate_at(config.optimizer, train.num_steps, step)
    writer.write(step, {**metrics, "learning_rate": float(rate)})  # refuses what is not finite
    write_jsonl(run.rollouts_file(step), rollout_rows(results, roles.ends))
    writer.write_timings(step, step_timings(results, num_devices=num_devices))
    empty_steps.see(results)
    if train.sample_texts_every_steps and step % train.sample_texts_every_steps == 0:
        writer.add_text(step, "example", example_texts(results))
    return f"loss={metrics['loss']:.3f} reward={metrics['reward']:.2f}"


def example_texts(results: StepResults) -> str:
    """Problem, rollout and context of the first wrong rollout, or of the first one."""
    wrong = int(np.argmin(results.correct))
    attempt, context = results.samples.attempts[wrong], results.contexts[wrong]
    parts = {
        "problem": attempt.problem.text,
        "rollout": attempt.text,
        "context": context.text or f"({context.failure})",
    }
    return "\n\n".join(f"{name}:\n{text}" for name, text in parts.items())
