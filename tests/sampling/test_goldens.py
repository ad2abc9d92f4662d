# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""An address draws what it drew when the parameters of requests were compiled in."""

import numpy as np
import pytest
from support.sampling_goldens import BATCH_SIZE, CASES, GOLDEN, MAX_NEW_TOKENS, SEED

from stepalign_jax.huggingface.weights import load_model
from stepalign_jax.sampling.engine import Engine
from stepalign_jax.sampling.request import Address, Purpose, Request, SamplingParams
from stepalign_jax.tiny.tokenizer import END, PAD, VOCABULARY

# Tokens are equal everywhere. Log-probabilities have the same bits where the golden was made;
# another CPU or compiler sums in another order (a second CPU differed by 2.9e-6), and then the
# difference is that between two implementations in float32, for which README promises 3e-5.
TOLERANCE = 3e-5


def test_addresses_draw_the_tokens_that_they_always_drew():
    golden = np.load(GOLDEN)
    ends = np.cumsum(golden["prompt_lengths"])[:-1]
    prompts = [prompt.tolist() for prompt in np.split(golden["prompts"], ends)]
    addresses = [Address(SEED, Purpose.SOLVER, *row) for row in golden["addresses"].tolist()]
    sizes, params = load_model("packaged:tiny")
    engine = Engine(sizes, "float32", None, (VOCABULARY[END],), VOCABULARY[PAD])
    assert len(prompts) == 100
    for name, case in CASES.items():
        how = SamplingParams(*case, MAX_NEW_TOKENS, stop_ids=())
        requests = [Request(p, a, how) for p, a in zip(prompts, addresses, strict=True)]
        rollouts = engine.sample({"params": params}, requests, batch_size=BATCH_SIZE)
        for field in ("tokens", "lengths", "finished"):
            expected = golden[f"{name}/{field}"]
            np.testing.assert_array_equal(getattr(rollouts, field), expected, err_msg=name)
        expected = golden[f"{name}/logprobs"]
        np.testing.assert_allclose(rollouts.logprobs, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [name for name in CASES if name != "unfiltered"])
def test_the_cases_differ(name):
    golden = np.load(GOLDEN)
    assert np.any(golden[f"{name}/tokens"] != golden["unfiltered/tokens"])
