# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Grades and token counts of a step, worked by hand from two rollouts of one problem."""

from typing import Any

import jax
import numpy as np
import pytest
from support.runs import tiny_roles

from stepalign_jax.base.types import Rollouts
from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.critics.oracle import Oracle
from stepalign_jax.critics.protocol import CriticReply
from stepalign_jax.feedback.contexts import Attempt, Context, get_condition
from stepalign_jax.grading.grader import Grader
from stepalign_jax.parallel.mesh import make_mesh
from stepalign_jax.problems.arithmetic import correct_trace
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.phases import Batch, Critiques, Samples, critique, grade, pack
from stepalign_jax.tiny.tokenizer import END, VOCABULARY, encode

ONE = make_mesh(ParallelConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
SUM = Problem("47+3*8", "71", "so 3*8 gives 24; Total 71", "arithmetic", correct_trace)
RIGHT = "Step 1: 3*8=24\nStep 2: 47+24=71\nAnswer: 71"
TEXTS = ["Answer: 71", "Answer: 6"]
CONTEXTS = [Context(RIGHT, None), Context("too short", "unparsable")]


def samples() -> Samples:
    rows = [encode(text) for text in TEXTS]
    tokens = np.zeros((2, 20), np.int32)  # wider than any row
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = row
    lengths = np.array([len(row) for row in rows], np.int32)
    rollouts = Rollouts(tokens, np.zeros((2, 20), np.float32), lengths, np.array([True, True]))
    prompts = [tiny_roles().solver(SUM)] * 2
    return Samples([Attempt(SUM, text) for text in TEXTS], prompts, [], rollouts)


def packed(condition: str, contexts: list[Context] = CONTEXTS, *weights: str) -> Batch:
    return pack(
        get_condition(condition),
        samples(),
        np.array([True, False]),
        Critiques(contexts, None, None),
        tiny_roles(),
        num_samples=2,
        weight_names=weights,
        num_parts=1,
        stop_id=VOCABULARY[END],
        mesh=ONE,
    )


def test_an_answer_is_graded_by_its_own_problem():
    with Grader(deadline_secs=5.0, num_workers=1) as grader:
        pattern = tiny_roles().prompts.answer_pattern
        assert grade(grader, samples().attempts, pattern).tolist() == [True, False]


def test_tokens_that_are_read_are_prompts_and_completions_without_padding():
    batch, roles = packed("stepalign"), tiny_roles()
    completions = sum(len(encode(text)) for text in TEXTS)
    assert batch.solver_tokens == 2 * len(roles.solver(SUM)) + completions
    texts = ["" if context.failure else context.text for context in CONTEXTS]
    assert texts.count("") == 1  # the failed one's could be of any length
    prompts = [roles.teacher(SUM, text) for text in texts]
    assert batch.teacher_tokens == sum(map(len, prompts)) + completions
    assert batch.teacher_tokens > batch.solver_tokens
    without = packed("grpo")
    assert (without.solver_tokens, without.teacher_tokens) == (batch.solver_tokens, 0)


def test_tokens_of_a_failed_context_do_not_count():
    (micro_batch,) = packed("stepalign").micro_batches
    assert micro_batch.layout.counts.sum() == len(encode(TEXTS[0]))
    rollouts, _ = micro_batch.layout.index
    assert set(rollouts.tolist()) == {0}


def trained_on(batch: Batch) -> dict[int, tuple[list[int], list[int]]]:
    """By rollout: all that the solver reads, and the tokens whose loss counts."""
    (part,) = batch.micro_batches
    rollouts, _ = part.layout.index
    picked = np.asarray(part.targets.tokens)[part.layout.counts]
    read = np.asarray(part.solver.tokens).tolist()
    lines = dict(zip(part.layout.rollouts[0].tolist(), read, strict=True))
    return {row: (lines[row], picked[rollouts == row].tolist()) for row in set(rollouts)}


STOP = [VOCABULARY[END]]
FAILED = Context("too short", "unparsable")


@pytest.mark.parametrize(
    ("condition", "critiques", "texts"),
    [
        # The first rollout is right, the second wrong.
        ("sft", [Context(RIGHT, None), Context(RIGHT, None)], [RIGHT, RIGHT]),
        ("sft", [FAILED, Context(RIGHT, None)], [None, RIGHT]),
        ("rejection", [Context(RIGHT, None), Context(RIGHT, None)], [TEXTS[0], RIGHT]),
        ("rejection", [FAILED, FAILED], [TEXTS[0], None]),
    ],
)
def test_baselines_train_on_texts_after_the_solvers_prompt(condition, critiques, texts):
    batch, prompt = packed(condition, critiques), tiny_roles().solver(SUM)
    assert batch.teacher is None and batch.teacher_tokens == 0
    assert batch.targets is not None
    assert [None if t.failure else t.text for t in batch.targets] == texts
    # A rollout's own tokens are as they were sampled: these hold no stop token.
    ids = {
        row: [*encode(text), *([] if text == TEXTS[row] else STOP)]
        for row, text in enumerate(texts)
        if text is not None
    }
    found = trained_on(batch)
    assert {row: tokens for row, (_, tokens) in found.items()} == ids
    for row, (line, tokens) in found.items():
        both = [*prompt, *tokens]
        assert line[: len(both)] == both and not any(line[len(both) :]), row
    assert batch.solver_tokens == 2 * len(prompt) + sum(map(len, ids.values()))


def test_a_step_whose_targets_all_failed_has_no_token():
    batch = packed("sft", [FAILED, FAILED])
    assert trained_on(batch) == {} and batch.targets == [FAILED, FAILED]


def test_weights_fall_on_the_tokens_of_targets():
    (part,) = packed("sft", [FAILED, Context(RIGHT, None)], "skip_first:3").micro_batches
    weights = np.asarray(part.targets.weights)[part.layout.counts]
    assert weights.tolist() == [0.0] * 3 + [1.0] * (len(encode(RIGHT)) - 2)


class FixedCritic(Oracle):
    """Finds the right words for the wrong rollout, the second."""

    def review(self, attempts: Any, addresses: Any) -> CriticReply:
        return CriticReply([Context("", "empty"), Context(RIGHT, None)], [1, 9], [True, True])


def test_the_exact_share_is_of_the_critiques_and_not_of_the_contexts():
    both = samples()
    both = both._replace(attempts=[Attempt(SUM, RIGHT), Attempt(SUM, TEXTS[1])])
    for condition in ("stepalign", "no_context"):
        found = critique(get_condition(condition), FixedCritic(), both, tiny_roles())
        assert found.exact_share == 1.0
    alone = critique(get_condition("no_context"), None, both, tiny_roles())
    assert (alone.exact_share, alone.reply) == (None, None)


def test_a_context_over_the_budget_fails():
    roles = tiny_roles(max_context_tokens=len(encode(RIGHT)) - 1)
    found = critique(get_condition("stepalign"), FixedCritic(), samples(), roles)
    assert [context.failure for context in found.contexts] == ["empty", "too_long"]


def test_what_a_critique_copies_ends_at_its_first_correction():
    wrong = RIGHT.replace("47+24=71", "47+24=61")
    completion = [*encode(wrong), encode("0")[0]]
    assert tiny_roles().num_copied(completion, RIGHT) == len(encode(wrong.split("61")[0]))
    assert tiny_roles().num_copied(encode(RIGHT), RIGHT) == len(encode(RIGHT))
    assert tiny_roles().num_copied(completion, "") == 0
