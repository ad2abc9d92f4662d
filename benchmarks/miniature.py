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
from stepalign_jax.config.schema import EngineCritic, SamplingConfig
from stepalign_jax.problems.problem import Problem
from stepalign_jax.problems.sources import load_problems
from stepalign_jax.runs.setup import open_solver
from stepalign_jax.sampling.request import (
    Purpose,
    SamplingParams,
    make_requests,
    sample_addresses,
)

RESULT = Path("docs/data/performance/miniature.json")
ONE, MANY = "one session", "one per core"


def make_jobs() -> dict[str, Callable[[], Rollouts]]:
    """Returns what samples each job, by what it is called in the document."""
    config = load_config("configs/tiny.py")
    model, roles = open_solver(config)
    model.load()
    prepared = model.engine.prepare({"params": model.base})

    def job(
        problems: list[Problem], prompts: list[Any], purpose: Purpose, how: SamplingConfig
    ) -> Callable[[], Rollouts]:
        ids, number = [problem.id for problem in problems], len(prompts) // len(problems)
        addresses = sample_addresses(ids, number, seed=0, purpose=purpose, step=0)
        requests = make_requests(prompts, addresses, SamplingParams.of(how))
        return lambda: model.engine.sample(prepared, requests, batch_size=how.batch_size)

    problems = load_problems(config.problems, "train")[: config.train.problems_per_step]
    prompts = [roles.solver(problem) for problem in problems]
    rollouts = job(problems, prompts, Purpose.SOLVER, config.sampling)
    critic = config.critic
    assert isinstance(critic, EngineCritic)
    asked = [
        roles.critic(problem, attempt, critic.sees)
        for problem, attempt in zip(problems, roles.texts(rollouts()), strict=True)
    ]
    test, k = load_problems(config.problems, "test"), config.evaluation.num_samples
    samples = [roles.solver(problem) for problem in test for _ in range(k)]
    return {
        f"{len(prompts)} rollouts": rollouts,
        f"{len(asked)} critiques": job(problems, asked, Purpose.CRITIC, critic),
        f"{len(samples)} samples on {config.evaluation.batch_size} slots": job(
            test, samples, Purpose.EVALUATION, config.evaluation
        ),
    }


def only_one_session() -> Any:
    """Within it, every call of an engine has one session."""
    return mock.patch("stepalign_jax.sampling.layout.num_sessions", lambda _variables: 1)


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
