# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from support.hand_scored import scored_texts
from support.runs import tiny_roles

from stepalign_jax.analysis.continuations import (
    Continuations,
    Sampler,
    continuations_key,
    find_prefixes,
    sample_continuations,
)
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Rollouts
from stepalign_jax.grading.grader import Grader
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.request import Purpose, SamplingParams
from stepalign_jax.tiny.tokenizer import END, VOCABULARY

ROLES = tiny_roles()
SUM = Problem("What is 3*8+47?", "71", None, "test")
OTHER = Problem("What is 2*8+47?", "63", None, "test")
RIGHT = "Step 1: 3*8=24\nStep 2: 24+47=71\nAnswer: 71"
WRONG = "Step 1: 3*8=24\nStep 2: 24+47=61\nAnswer: 61"
PARAMS = SamplingParams(1.1, 0, 1.0, 64, stop_ids=())
STOP = VOCABULARY[END]


def text_before(scored, prefix):
    row = scored.tokens[scored.of(prefix.rollout)][: prefix.length]
    return ROLES.tokenizer.decode(row, skip_special_tokens=True)


def test_k_reasoning_steps_have_k_and_one_prefixes():
    scored = scored_texts(ROLES, [SUM], [RIGHT])
    prefixes, steps, before, after = find_prefixes(scored)
    assert [text_before(scored, prefix) for prefix in prefixes] == [
        "",
        "Step 1: 3*8=24\n",
        "Step 1: 3*8=24\nStep 2: 24+47=71\n",
    ]
    assert steps.tolist() == [[0, 0], [0, 1]]
    assert (before.tolist(), after.tolist()) == ([0, 1], [1, 2])


def test_rollouts_of_a_problem_share_what_they_have_in_common():
    scored = scored_texts(ROLES, [SUM, SUM, OTHER], [RIGHT, WRONG, RIGHT])
    prefixes, steps, before, after = find_prefixes(scored)
    # The second rollout differs from its second reasoning step on; the third is of another
    # problem, and shares nothing.
    assert steps.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert before.tolist() == [0, 1, 0, 1, 4, 5]
    assert after.tolist() == [1, 2, 1, 3, 5, 6]
    assert [prefix.rollout for prefix in prefixes] == [0, 0, 0, 1, 2, 2, 2]


def test_a_preamble_belongs_to_the_first_prefix():
    scored = scored_texts(ROLES, [SUM], ["71-24=47\nStep 1: 3*8=24\nStep 2: 24+47=71"])
    prefixes, _, before, after = find_prefixes(scored)
    assert text_before(scored, prefixes[before[0]]) == "71-24=47\n"
    assert text_before(scored, prefixes[after[1]]) == scored.rows[0]["rollout"]


def test_rollouts_without_reasoning_steps_have_no_prefix():
    scored = scored_texts(ROLES, [SUM, SUM], ["Answer: 71", RIGHT])
    prefixes, steps, before, _ = find_prefixes(scored)
    assert {prefix.rollout for prefix in prefixes} == {1}
    assert steps.tolist() == [[1, 0], [1, 1]] and len(before) == 2
    prefixes, steps, _, _ = find_prefixes(scored_texts(ROLES, [SUM], ["Answer: 71"]))
    assert prefixes == [] and steps.shape == (0, 2)


class CarefulEngine:
    """Goes on as the miniature might, and says what it was asked.

    Behind a right beginning the sample's number decides: the first quarter is wrong. Behind a
    wrong one all are.
    """

    def __init__(self, num):
        self.requests, self.num = [], num

    def sample(self, variables, requests, *, batch_size, progress, kept):
        self.requests += requests
        rows = [self._row(request) for request in requests]
        progress(len(rows))
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = np.zeros((len(rows), max(map(len, rows), default=0)), np.int32)
        for line, row in zip(tokens, rows, strict=True):
            line[: len(row)] = row
        return Rollouts(tokens, np.zeros(tokens.shape, np.float32), lengths, lengths > 0)

    def _row(self, request):
        said = ROLES.tokenizer.decode(request.prompt)
        right = "=61" not in said and request.address.sample >= self.num // 4
        return [*ROLES.plain(f"Answer: {71 if right else 61}"), STOP]


@pytest.fixture
def sampler():
    with Grader(deadline_secs=5.0, num_workers=1) as grader:
        model = SimpleNamespace(engine=CarefulEngine(8), stop_ids=(STOP,))
        weights = {"params": {"w": np.ones(3, np.float32)}}
        yield Sampler(model, weights, ROLES, grader, PARAMS, 8, 3, 4)


def test_outcomes_are_those_of_the_continuations(sampler, tmp_path):
    scored = scored_texts(ROLES, [SUM, SUM], [RIGHT, WRONG])
    found = sample_continuations(sampler, scored, [SUM, SUM], tmp_path / "c.npz")
    rates = found.right.mean(axis=1)
    assert rates[found.before].tolist() == [0.75, 0.75, 0.75, 0.75]
    assert rates[found.after].tolist() == [0.75, 0.75, 0.75, 0.0]
    assert found.prefix_rollout.tolist() == [0, 0, 0, 1]
    assert list(tmp_path.iterdir()) == [tmp_path / "c.npz"]  # what was kept is gone


def test_each_prefix_has_noise_of_its_own_and_the_room_that_is_left(sampler, tmp_path):
    scored = scored_texts(ROLES, [SUM], [RIGHT])
    found = sample_continuations(sampler, scored, [SUM], tmp_path / "c.npz")
    requests = sampler.model.engine.requests
    assert len(requests) == 3 * 8  # four prefixes would be one too many
    assert len({request.address for request in requests}) == 3 * 8
    assert {request.address.purpose for request in requests} == {Purpose.CONTINUATION}
    assert {request.address.seed for request in requests} == {3}
    prompt = ROLES.solver(SUM)
    for place, request in enumerate(requests):
        length = int(found.prefix_length[place // 8])
        assert request.prompt == prompt + scored.tokens[:length].tolist()
        assert request.params.max_new_tokens == PARAMS.max_new_tokens - length


def test_nothing_is_sampled_where_nothing_can_follow(sampler, tmp_path):
    # The last reasoning step is cut by the budget, or ends in the stop token.
    cut = "Step 1: 3*8=24\nStep 2: 24+47=71"
    scored = scored_texts(ROLES, [SUM], [cut])
    length = len(scored.tokens) - 1
    short = sampler._replace(params=PARAMS._replace(max_new_tokens=length))
    found = sample_continuations(short, scored, [SUM], tmp_path / "a.npz")
    assert len(sampler.model.engine.requests) == 2 * 8
    assert not found.right[found.after[1]].any()  # it has no answer
    inside = scored.reasoning_step.copy()
    inside[-1] = 1  # a stop token that counts as part of the reasoning step
    scored = dataclasses.replace(scored, reasoning_step=inside)
    found = sample_continuations(sampler, scored, [SUM], tmp_path / "b.npz")
    assert len(sampler.model.engine.requests) == 4 * 8
    assert found.prefix_length[found.after[1]] == length + 1


def test_outcomes_are_read_again_bit_for_bit_and_not_sampled_twice(sampler, tmp_path):
    scored = scored_texts(ROLES, [SUM, SUM], [RIGHT, WRONG])
    found = sample_continuations(sampler, scored, [SUM, SUM], tmp_path / "c.npz")
    asked = len(sampler.model.engine.requests)
    again = sample_continuations(sampler, scored, [SUM, SUM], tmp_path / "c.npz")
    assert len(sampler.model.engine.requests) == asked
    for field in dataclasses.fields(Continuations):
        a, b = getattr(found, field.name), getattr(again, field.name)
        assert np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype


@pytest.mark.parametrize(
    "change",
    [
        {"num": 4},
        {"seed": 4},
        {"params": PARAMS._replace(temperature=1.0)},
        {"variables": {"params": {"w": np.full(3, 2, np.float32)}}},
        {"roles": tiny_roles(solver="Q: {problem}")},
    ],
)
def test_outcomes_of_other_weights_or_settings_are_not_taken(sampler, tmp_path, change):
    scored = scored_texts(ROLES, [SUM], [RIGHT])
    sample_continuations(sampler, scored, [SUM], tmp_path / "c.npz")
    asked = len(sampler.model.engine.requests)
    other = sampler._replace(**change)
    assert continuations_key(other, scored) != continuations_key(sampler, scored)
    sample_continuations(other, scored, [SUM], tmp_path / "c.npz")
    assert len(sampler.model.engine.requests) == asked + 3 * other.num


@pytest.mark.parametrize("cut", [4, 600, -1])
def test_a_damaged_file_is_refused_in_a_sentence(sampler, tmp_path, cut):
    scored = scored_texts(ROLES, [SUM], [RIGHT])
    path = tmp_path / "c.npz"
    sample_continuations(sampler, scored, [SUM], path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="delete the file"):
        sample_continuations(sampler, scored, [SUM], path)
