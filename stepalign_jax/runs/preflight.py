# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What is known of a run before its first optimizer step: is there something to distil?

    solver    one rollout of each of a few training problems, sampled as a step samples
    critic    what it makes of them, if the condition asks it
    teacher   its own answers to the same problems under the condition's contexts, if a teacher
              is asked in training
    run       the tokens of the whole, and the time of what was measured here

Each is printed as it is found, and all of it is in preflight.json. What is drawn has addresses
of its own (`PREFLIGHT_STEP`), so that no draw of the training changes.
"""

import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from stepalign_jax.base.compilation import CompilationCounter
from stepalign_jax.base.files import write_json
from stepalign_jax.base.progress import progress, say
from stepalign_jax.config.schema import Config
from stepalign_jax.critics.protocol import Critic, CriticReply, innermost, outcomes
from stepalign_jax.critics.replay import Replay
from stepalign_jax.evaluation.evaluate import Evaluation, difference_interval, share_interval
from stepalign_jax.evaluation.probe import Asker, ask_teacher
from stepalign_jax.evaluation.statistics import mixed_share
from stepalign_jax.evaluation.words import percent
from stepalign_jax.feedback.contexts import (
    Context,
    describe_failures,
    get_condition,
    in_words,
)
from stepalign_jax.feedback.roles import Roles
from stepalign_jax.grading.grader import Grader
from stepalign_jax.huggingface.language_model import LanguageModel
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.phases import critique, grade, sample
from stepalign_jax.runs.setup import step_sampling
from stepalign_jax.runs.stopwatch import duration
from stepalign_jax.sampling.request import PREFLIGHT_STEP

WIDTH, _INDENT = 80, 11  # of a terminal, and of the words behind a role


def preflight(
    config: Config,
    run: RunDirectory,
    model: LanguageModel,
    roles: Roles,
    grader: Grader,
    critic: Critic | None,
    problems: Sequence[Problem],
    measured: Mapping[str, Evaluation],
) -> None:
    """Measures the roles on the first `train.preflight_problems`, and warns of what is amiss.

    It does nothing where that is 0, or where the run has done it already. A store that is
    replayed has no critiques of these rollouts, so critic and teacher are left out.

    Args:
      config: of the run.
      run: its directory, where preflight.json is written.
      model: weights loaded; the initial solver and teacher.
      roles: its prompts.
      grader: judges answers.
      critic: weights loaded; None where the condition asks none.
      problems: of training.
      measured: evaluations of the initial solver, by split; "test" is one of them.
    """
    asked = problems[: config.train.preflight_problems]
    if not asked or run.preflight_file.exists():
        return
    condition, how = get_condition(config.condition), step_sampling(config)
    found: dict[str, Any] = {"condition": config.condition, "problems": len(asked)}
    contexts: list[Context] = []
    say(f"pre-flight: {len(asked)} training problems, one rollout each")
    num_phases = 1 + (condition.contexts is not None) + condition.asks_teacher
    with _clock(num_phases) as clock:
        with clock.phase("sample"):
            samples = sample(
                model.engine, model.variables(), roles, asked, how,
                num_samples=1, seed=config.seed, step=PREFLIGHT_STEP,
            )  # fmt: skip
            correct = grade(grader, samples.attempts, config.prompts.answer_pattern) * 1.0
        lengths = {"sample": [int(length) for length in samples.rollouts.lengths]}
        found["solver"] = _solver(config, correct, lengths["sample"], measured)
        if condition.contexts is None:
            found["groups"] = _groups(config, measured["test"])
        elif isinstance(innermost(critic), Replay):
            _show("critic", "replayed, for other rollouts: neither it nor the teacher is asked")
        else:
            with clock.phase("critique"):
                critiques = critique(condition, critic, samples, roles)
            contexts = critiques.contexts
            if critiques.reply is not None:
                lengths["critique"] = critiques.reply.lengths
                found["critic"] = _critic(critiques.reply, critiques.exact_share)
            found["contexts"] = dict(Counter(outcomes(contexts)))
            if condition.asks_teacher:
                with clock.phase("teacher"):
                    asker = Asker(model, roles, config.seed, PREFLIGHT_STEP, None)
                    right = ask_teacher(asker, grader, samples.attempts, contexts, how, "")
                usable = np.array([context.failure is None for context in contexts])
                found["teacher"] = _teacher(config, right, correct[usable])
    found["run"] = _run(config, lengths, clock.seconds)
    found["warnings"] = list(warnings(found, contexts))
    for warning in found["warnings"]:
        say(f"warning: {warning}", to=sys.stderr)
    write_json(run.preflight_file, found)


class _Clock:
    """Seconds of each phase without its compilations; a bar says which one it is."""

    def __init__(self, bar: Any, compiled: CompilationCounter):
        self.seconds: dict[str, float] = {}
        self._bar, self._compiled = bar, compiled

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._bar.set_postfix_str(name)
        self._compiled.take()
        started = time.monotonic()
        yield
        taken = time.monotonic() - started - self._compiled.take()["compile_seconds"]
        self.seconds[name] = max(taken, 0.0)
        self._bar.update()


@contextmanager
def _clock(num_phases: int) -> Iterator[_Clock]:
    with (
        progress(total=num_phases, description="pre-flight") as bar,
        closing(CompilationCounter()) as compiled,
    ):
        yield _Clock(bar, compiled)


def _solver(
    config: Config,
    correct: np.ndarray,
    lengths: Sequence[int],
    measured: Mapping[str, Evaluation],
) -> dict[str, Any]:
    how, seed = config.evaluation, config.seed
    samples = {"test": how.num_samples, "validation": how.num_validation_samples}
    known = {split: e.intervals(how, seed)["avg_at_k"] for split, e in measured.items()}
    accuracy = share_interval(correct, how, seed)
    others = [f"{split} Avg@{samples[split]} {percent(known[split])}" for split in known]
    _show("solver", f"{percent(accuracy)} % right; {', '.join(others)}")
    return {"accuracy": accuracy, "mean_tokens": float(np.mean(lengths)), **known}


def _groups(config: Config, test: Evaluation) -> dict[str, float]:
    """How many of a step's groups hold both outcomes, if its problems are like the test's."""
    train = config.train
    averages, size = test.per_problem["avg_at_k"], train.samples_per_problem
    share = float(mixed_share(averages, config.evaluation.num_samples, size).mean())
    _show(
        "groups",
        f"{100 * share:.1f} % of {size} rollouts each hold right and wrong ones, by the test "
        "problems; the others have no signal",
    )
    return {"size": size, "mixed": share, "mixed_per_step": share * train.problems_per_step}


def _critic(reply: CriticReply, exact_share: float | None) -> dict[str, Any]:
    counts = Counter(outcomes(reply.critiques))
    number, num_ok = counts.total(), counts.pop("ok", 0)
    exact = "" if exact_share is None else f", {100 * exact_share:.1f} % exact on wrong ones"
    failed = f"; {in_words(counts)}" if counts else ""
    _show("critic", f"{num_ok} of {number} critiques can be used{exact}{failed}")
    return {
        "outcomes": {"ok": num_ok, **counts},
        "exact_on_wrong": exact_share,
        "mean_tokens": float(np.mean(reply.lengths)) if reply.lengths else None,
        "cost": None if reply.usage is None else reply.usage.cost,
    }


def _teacher(config: Config, right: np.ndarray, solver: np.ndarray) -> dict[str, Any]:
    """Teacher and solver on the same problems: those whose context can be used."""
    how, seed = config.evaluation, config.seed
    accuracy = share_interval(right, how, seed)
    above = difference_interval(solver, right, how, seed)
    _show(
        "teacher",
        f"{percent(accuracy)} % right under contexts of {config.condition}, "
        f"{percent(above, signed=True)} points above the solver",
    )
    return {"problems": len(right), "accuracy": accuracy, "above_solver": above}


def _run(
    config: Config, lengths: Mapping[str, Sequence[int]], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Tokens of the whole run, and the seconds to write them as fast as they were here."""
    train = config.train
    per_step = train.rollouts_per_step
    scale = train.num_steps * per_step / len(lengths["sample"])
    tokens = {phase: round(scale * sum(some)) for phase, some in lengths.items()}
    time_of = {phase: scale * seconds[phase] for phase in lengths}
    names = {"sample": "rollouts", "critique": "critiques"}
    words = [f"{tokens[phase]:,} tokens of {names[phase]}" for phase in lengths]
    _show(
        "run",
        f"{train.num_steps} steps with about {' and '.join(words)}, which take about "
        f"{duration(sum(time_of.values()))}; whole steps are timed when two are done",
    )
    return {"tokens": tokens, "seconds": time_of}


def warnings(found: Mapping[str, Any], contexts: Sequence[Context]) -> Iterator[str]:
    """Yields a sentence for each reason why the run may learn nothing.

    Args:
      found: the content of preflight.json.
      contexts: of its rollouts; [] where no teacher was asked.
    """
    num_failed = sum(context.failure is not None for context in contexts)
    if 2 * num_failed > len(contexts):
        words, mend = describe_failures(contexts)
        yield (
            f"{num_failed} of {len(contexts)} contexts failed, and such rollouts are masked: "
            f"{words}; {mend}"
        )
    teacher = found.get("teacher")
    if teacher is not None and teacher["problems"] and teacher["above_solver"]["low"] <= 0:
        above = percent(teacher["above_solver"], signed=True)
        yield (
            f"nothing to distil is shown by {teacher['problems']} problems: under contexts of "
            f"{found['condition']} the teacher is {above} points above the solver, which may "
            "be 0 (train.preflight_problems asks about more)"
        )
    groups = found.get("groups")
    if groups is not None and groups["mixed_per_step"] < 1:
        yield (
            f"a step has {groups['mixed_per_step']:.2f} groups of {groups['size']} with both "
            "right and wrong rollouts, so most steps have no signal: take problems that are "
            "neither too easy nor too hard, or larger groups (train.samples_per_problem)"
        )


def _show(role: str, words: str) -> None:
    lines = textwrap.fill(words, WIDTH - _INDENT)
    say(textwrap.indent(lines, " " * _INDENT).replace(" " * _INDENT, f"  {role:<9}", 1))
