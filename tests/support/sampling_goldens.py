# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes goldens_data/sampling.npz: what addresses drew before requests carried parameters.

    git checkout 6be65eb && python -P THIS_FILE goldens_data/sampling.npz

It runs on the code of that commit, whose decode program had the parameters of all its requests
compiled in. The golden holds the requests (prompts as token ids, addresses) and, for each case,
tokens and log-probabilities of the packaged model. It is made once: a later engine draws the
same tokens, or a recorded run can no longer be repeated.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "goldens_data" / "sampling.npz"
SEED, STEP, NUM_REQUESTS, BATCH_SIZE, MAX_NEW_TOKENS = 7, 3, 100, 32, 40
# temperature, top-k, top-p; above 1 the packaged model's distribution is wide enough to filter.
CASES: dict[str, tuple[float, int, float]] = {
    "greedy": (0.0, 0, 1.0),
    "unfiltered": (1.1, 0, 1.0),
    "top_k": (2.5, 20, 1.0),
    "top_p": (1.1, 0, 0.95),
    "both": (2.5, 20, 0.95),
}


def main(path: str) -> None:
    """Samples the same requests once for each case, with the code of 6be65eb."""
    from stepalign_jax.base.load_config import load_config  # pyright: ignore
    from stepalign_jax.feedback.roles import addresses  # pyright: ignore
    from stepalign_jax.runs.assemble import assemble, problem_set  # pyright: ignore
    from stepalign_jax.sampling.engine import Purpose  # pyright: ignore

    config: Any = load_config("configs/tiny.py")
    bench: Any = assemble(config)
    problems = problem_set(config.problems, "train")[:NUM_REQUESTS]
    prompts = [bench.roles.solver(problem) for problem in problems]
    golden: dict[str, Any] = {
        "prompts": np.concatenate(prompts).astype(np.int32),
        "prompt_lengths": np.array([len(prompt) for prompt in prompts]),
        "addresses": addresses(problems, 1, STEP),
    }
    for name, (temperature, top_k, top_p) in CASES.items():
        settings = SimpleNamespace(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=BATCH_SIZE,
        )
        rollouts = bench.engine.sample(
            {"params": bench.base},
            prompts,
            golden["addresses"],
            seed=SEED,
            purpose=Purpose.SOLVER,
            settings=settings,
        )
        for field in ("tokens", "logprobs", "lengths", "finished"):
            golden[f"{name}/{field}"] = np.asarray(getattr(rollouts, field))
    np.savez_compressed(path, **golden)


if __name__ == "__main__":
    main(*sys.argv[1:])
