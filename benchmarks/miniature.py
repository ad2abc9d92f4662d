# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The packaged model's sampler: one session, beside one session per core.

    python -m benchmarks.miniature

The jobs are those of `make demo`: a step's rollouts, their critiques, and an evaluation. Both
ways take turns in one process and draw the same tokens. Writes
docs/data/performance/miniature.json; about two minutes on two cores.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.measure import interleaved, machine, ratios, summary, write_json
from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.load import load_config
from stepalign_jax.feedback.roles import addresses
from stepalign_jax.runs.setup import assemble, problem_set
from stepalign_jax.sampling.engine import Purpose

RESULT = Path("docs/data/performance/miniature.json")
ONE, MANY = "one session", "one per core"


def make_jobs() -> dict[str, Callable[[], Rollouts]]:
    """Returns what samples each job, by what it is called in the document."""
    config = load_config("configs/tiny.py")
    bench = assemble(config)
    prepared = bench.engine.prepare({"params": bench.base})

    def job(prompts: list[Any], at: np.ndarray, purpose: Purpose, settings: Any) -> Any:
        return lambda: bench.engine.sample(
            prepared, prompts, at, seed=0, purpose=purpose, settings=settings
        )

    problems = problem_set(config.problems, "train")[: config.train.problems_per_step]
    at = addresses(problems, 1, 0)
    prompts = [bench.roles.solver(problem) for problem in problems]
    rollouts = job(prompts, at, Purpose.SOLVER, config.sampling)
    attempts = bench.roles.texts(rollouts())
    sees = config.critic.sees  # pyright: ignore[reportAttributeAccessIssue]
    asked = [
        bench.roles.critic(problem, attempt, sees)
        for problem, attempt in zip(problems, attempts, strict=True)
    ]
    test, k = problem_set(config.problems, "test"), config.evaluation.num_samples
    samples = [bench.roles.solver(problem) for problem in test for _ in range(k)]
    return {
        f"{len(prompts)} rollouts": rollouts,
        f"{len(asked)} critiques": job(
            asked,
            at,
            Purpose.CRITIC,
            config.critic,
        ),
        f"{len(samples)} samples on {config.evaluation.batch_size} slots": job(
            samples, addresses(test, k, 0), Purpose.EVALUATION, config.evaluation
        ),
    }


def only_one_session() -> Any:
    """Within it, every call of an engine has one session."""
    return mock.patch("stepalign_jax.sampling.engine._num_lanes", lambda _prepared: 1)


def sample_once(sample: Callable[[], Rollouts], way: str, tokens: Any, cores: Any) -> None:
    """Samples a job one way; notes its tokens, and how many cores it kept busy."""
    busy, elapsed = time.process_time(), time.perf_counter()
    with only_one_session() if way == ONE else nullcontext():
        tokens[way] = sample().tokens
    busy, elapsed = time.process_time() - busy, time.perf_counter() - elapsed
    cores.setdefault(way, []).append(busy / elapsed)


def measure(rounds: int) -> dict[str, Any]:
    """Returns milliseconds, cores in use, and the share of one session's time, by job."""
    result = {}
    for name, sample in make_jobs().items():
        tokens, cores = {}, {}
        ways = {way: partial(sample_once, sample, way, tokens, cores) for way in (ONE, MANY)}
        seconds = interleaved(ways, rounds=rounds)
        if not np.array_equal(tokens[ONE], tokens[MANY]):
            raise SystemExit(f"{name}: the two ways drew unlike tokens")
        result[name] = {
            "ms": {way: summary(1e3 * s for s in seconds[way]) for way in ways},
            "cores": {way: summary(cores[way][1:]) for way in ways},  # the first one compiles
            "of_one_session": summary(ratios(seconds, MANY, to=ONE)),
        }
    return {"jobs": result, "machine": machine(("jax", "jaxlib"))}


def main() -> None:
    """Writes docs/data/performance/miniature.json, and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    result = measure(parser.parse_args().rounds)
    write_json(RESULT, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
