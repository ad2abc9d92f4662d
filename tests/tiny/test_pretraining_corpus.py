# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The corpus: what each kind of row teaches, read back from its tokens."""

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepalign_jax.config.load import load_config
from stepalign_jax.huggingface.tokenizer import load_tokenizer, render_prompt
from stepalign_jax.problems.arithmetic import (
    Operation,
    correct_trace,
    draw_problem,
    first_error,
    order_of,
    parse_operations,
    parse_terms,
    split_of,
)
from stepalign_jax.problems.problem import Problem
from stepalign_jax.tiny import corpus as pretraining_corpus
from stepalign_jax.tiny.corpus import (
    CLEAN,
    FIX_WEIGHT,
    HEAVY,
    ROW_KINDS,
    Claim,
    Corpus,
    Mixture,
    PackedBatch,
    Row,
    Slips,
    add_given_trace,
    draw_attempt,
    draw_batch,
)
from stepalign_jax.tiny.tokenizer import (
    ASSISTANT,
    END,
    PAD,
    USER,
    VOCABULARY,
    encode,
    save_tokenizer,
)

CONFIG = Path(__file__).parents[2] / "configs" / "tiny.py"
PIECES = {index: piece for piece, index in VOCABULARY.items()}
CONTEXT_KINDS = ("critique", "reference", "empty", "other")
SOLVER_LIKE = ("solver", "empty", "other")
# Every carry is forgotten, and nothing else goes wrong, in the solver's corpus.
FORGETFUL = Mixture(*[1.0] * 7, solver_slips=Slips(1.0, 0.0, 0.0), long_share=0.5)
FAULTLESS = FORGETFUL._replace(solver_slips=CLEAN)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus(load_config(str(CONFIG)).prompts, "answer")


def text_of(ids: Any) -> str:
    return "".join(PIECES[int(i)] for i in ids)


def rows(corpus: Corpus, kind: str, count: int, mixture: Mixture = FORGETFUL) -> Iterator[Row]:
    rng = random.Random(kind)
    for _ in range(count):
        row = corpus.row(rng, kind, mixture, (3, 10))
        assert len(row.tokens) == len(row.targets) == len(row.weights)
        yield row


def completion_start(row: Row) -> int:
    return row.tokens.index(VOCABULARY[ASSISTANT]) + 1


def parts(row: Row) -> tuple[str, str, str]:
    """Problem text, what follows it in the prompt, and the completion without its end."""
    text = text_of(row.tokens)
    assert text.startswith(USER) and text.endswith(END)
    prompt, completion = text.removeprefix(USER).removesuffix(END).split(ASSISTANT)
    problem, newline, rest = prompt.partition("\n")
    return problem, newline + rest, completion


def spans(row: Row) -> Iterator[tuple[Operation, slice, slice]]:
    """Each stated reasoning step, and where its right operand and its result stand."""
    start = completion_start(row)
    while PIECES[row.tokens[start]].startswith("Step"):
        stop = row.tokens.index(VOCABULARY["\n"], start) + 1
        line = row.tokens[start:stop]
        (operation,) = parse_operations(text_of(line))
        equals = start + line.index(VOCABULARY["="])
        operand = equals - len(encode(str(operation.right)))
        yield operation, slice(operand, equals + 1), slice(equals + 1, stop)
        start = stop


def true_result(operation: Operation) -> int:
    return eval(f"{operation.left}{operation.operator}{operation.right}")


def carrying(operation: Operation) -> bool:
    units = operation.left % 10 + operation.right % 10
    return operation.operator == "+" and units > 9


# ---- which problems


class Draws:
    """Stands in for draw_problem and remembers what it returned."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def __call__(self, *args: Any) -> Problem:
        self.problems.append(draw_problem(*args))
        return self.problems[-1]


@pytest.mark.parametrize("kind", [kind for kind in ROW_KINDS if kind != "drill"])
def test_every_problem_of_a_row_is_a_pretraining_problem(corpus, kind, monkeypatch):
    draws = Draws()
    monkeypatch.setattr(pretraining_corpus, "draw_problem", draws)
    for row in rows(corpus, kind, 25):
        text, prompt_rest, _ = parts(row)
        own, *others = draws.problems
        assert text == own.text
        assert len(others) == (kind == "other")
        assert all(split_of(problem.text) == "pretraining" for problem in draws.problems)
        if kind in CONTEXT_KINDS:
            check_context(kind, prompt_rest.removeprefix("\nFeedback:\n"), own, others)
        draws.problems.clear()


def check_context(kind: str, context: str, own: Problem, others: list[Problem]) -> None:
    if kind == "empty":
        assert context == ""
    elif kind == "reference":
        assert context == own.reference
    elif kind == "critique":
        assert correct_trace(own.text, context) == context
    else:  # a right trace of the other problem, or its reference; not of this problem
        (other,) = others
        assert other.text != own.text
        assert context == other.reference or first_error(other.text, context) is None
        assert context != own.reference and first_error(own.text, context) is not None


def test_drills_are_bare_facts_and_no_problems(corpus):
    for row in rows(corpus, "drill", 20):
        facts = text_of(row.tokens).splitlines(keepends=True)
        assert len(facts) == 12
        weights = iter(row.weights)
        for fact in facts:
            # Two numbers, one operator: the shortest problem has three operators.
            match = re.fullmatch(r"(\d+[-+*]\d+=)(\d+)\n", fact)
            assert match, fact
            question, result = match.groups()
            assert 0 <= eval(question[:-1]) == int(result) <= 99
            assert [next(weights) for _ in question] == [0.0] * len(question)
            assert [next(weights) for _ in result + "\n"] == [1.0] * (len(result) + 1)
        assert row.targets == row.tokens


# ---- what a row teaches


@pytest.mark.parametrize("kind", [kind for kind in ROW_KINDS if kind != "drill"])
def test_prompts_are_unsupervised_and_completions_well_formed(corpus, kind):
    for row in rows(corpus, kind, 15):
        start = completion_start(row)
        assert row.weights[:start] == [0.0] * start
        assert row.targets[:start] == row.tokens[:start]
        problem, _, completion = parts(row)
        assert tuple(row.tokens[start:-1]) == encode(completion)  # piecewise = as a whole
        operations = parse_operations(completion)
        assert len(operations) == len(parse_terms(problem))
        steps = "".join(f"Step {i}: {op}\n" for i, op in enumerate(operations, start=1))
        assert completion == f"{steps}Answer: {operations[-1].result}"
        assert row.weights[-1] > 0  # where to stop is taught


@pytest.mark.parametrize("kind", SOLVER_LIKE)
def test_without_a_context_of_its_own_a_row_forgets_every_carry(corpus, kind):
    num_carries = 0
    for row in rows(corpus, kind, 25):
        for operation, _, _ in spans(row):
            carry = carrying(operation)
            assert operation.result == true_result(operation) - 10 * carry
            num_carries += carry
        assert row.targets == row.tokens
        assert set(row.weights[completion_start(row) :]) == {1.0}
    assert num_carries > 25


@pytest.mark.parametrize("kind", SOLVER_LIKE)
def test_with_a_faultless_solver_these_rows_are_right(corpus, kind):
    for row in rows(corpus, kind, 10, FAULTLESS):
        problem, _, completion = parts(row)
        assert first_error(problem, completion) is None


@pytest.mark.parametrize("kind", ["critique", "reference"])
def test_a_conditioned_teacher_is_taught_the_right_digits_of_wrong_traces(corpus, kind):
    num_mended_carries = 0
    for row in rows(corpus, kind, 40):
        mended = [i for i, token in enumerate(row.tokens) if row.targets[i] != token]
        supervised = set(range(completion_start(row), len(row.tokens)))
        for operation, operand, result in spans(row):
            given, right = row.tokens[result], encode(f"{true_result(operation)}\n")
            wrong = next(
                (i for i, (g, r) in enumerate(zip(given, right, strict=False)) if g != r), None
            )
            if wrong is not None:
                at = result.start + wrong
                assert row.targets[at] == right[wrong]
                num_mended_carries += carrying(operation)
                assert at in mended
            # One mended digit per number, and no supervision on the rest of that number.
            for span in (operand, result):
                inside = [i for i in mended if span.start <= i < span.stop]
                assert len(inside) <= 1
                supervised -= {i for at in inside for i in range(at + 1, span.stop)}
                mended = [i for i in mended if i not in inside]
            assert (wrong is not None) == (operation.result != true_result(operation))
        assert mended == []  # nothing else differs from what is given
        assert [i for i, weight in enumerate(row.weights) if weight == 1.0] == sorted(
            supervised
        )
        assert set(row.weights) == {0.0, 1.0}
    assert num_mended_carries > 25


@pytest.mark.parametrize(
    ("given", "right", "targets", "weights"),
    [
        ("71\n", "71\n", "71\n", [1, 1, 1]),
        ("61\n", "71\n", "71\n", [1, 0, 0]),
        ("70\n", "71\n", "71\n", [1, 1, 0]),
        ("7\n", "71\n", "71", [1, 1]),
        ("71\n", "7\n", "7\n\n", [1, 1, 0]),
        ("5=", "-5=", "-=", [1, 0]),
    ],
)
def test_a_wrong_number_is_supervised_up_to_its_first_wrong_digit(
    given, right, targets, weights
):
    row = Row()
    row.add_given(given, right)
    assert text_of(row.tokens) == given
    assert text_of(row.targets) == targets
    assert row.weights == weights


def test_a_wrong_term_is_mended_and_its_result_follows_what_is_stated():
    row = Row()
    stated = [Operation(3, "*", 8, 24), Operation(47, "+", 24, 61), Operation(61, "-", 15, 46)]
    meant = [stated[0], Operation(47, "+", 24, 71), Operation(61, "-", 12, 46)]
    add_given_trace(row, [Claim(*pair) for pair in zip(stated, meant, strict=True)])
    assert text_of(row.tokens) == (
        "Step 1: 3*8=24\nStep 2: 47+24=61\nStep 3: 61-15=46\nAnswer: 46" + END
    )
    assert text_of(row.targets) == (
        "Step 1: 3*8=24\nStep 2: 47+24=71\nStep 3: 61-12=46\nAnswer: 46" + END
    )
    unsupervised = [i for i, weight in enumerate(row.weights) if weight == 0.0]
    assert text_of(row.tokens[i] for i in unsupervised) == "1\n="


def test_a_critic_writes_the_oracles_critique_and_weighs_its_corrections(corpus):
    num_copied = num_mended = 0
    for row in rows(corpus, "critic", 40):
        problem, prompt_rest, critique = parts(row)
        expected, attempt = prompt_rest.removeprefix("\nExpected: ").split("\nAttempt:\n")
        assert expected == str(eval(problem))
        assert critique == correct_trace(problem, attempt)
        assert all(op.result == true_result(op) for op in parse_operations(critique))
        assert row.targets == row.tokens
        weights = iter(row.weights[completion_start(row) :])
        for line, other in zip(critique.split("\n"), attempt.split("\n"), strict=True):
            tokens = encode(line + "\n")
            expected_weight = 1.0 if line == other else FIX_WEIGHT
            assert [next(weights) for _ in tokens] == [expected_weight] * len(tokens)
            num_copied, num_mended = num_copied + (line == other), num_mended + (line != other)
    assert num_copied > 40 and num_mended > 40


def test_attempts_continue_from_what_they_state_and_stay_in_range():
    rng, num_wrong = random.Random(0), 0
    for _ in range(100):
        terms = parse_terms(draw_problem(rng, "pretraining", rng.randint(3, 8)).text)
        order = order_of(len(terms), forward=rng.random() < 0.5)
        claims = draw_attempt(rng, terms, order, HEAVY)
        stated = [claim.stated for claim in claims]
        for before, operation in itertools.pairwise(stated[1:]):
            assert operation.left == before.result
        for operation, meant in claims:
            assert 0 <= operation.result <= 99
            assert meant.result == true_result(operation)
            assert (meant.left, meant.operator) == (operation.left, operation.operator)
            num_wrong += operation.result != meant.result
        product = next(i for i, term in enumerate(terms) if "*" in term.text)
        values = [stated[0].result if i == product else terms[i].value for i in order]
        assert [claim.meant.right for claim in claims[1:]] == values
    assert num_wrong > 100


def test_prompts_are_the_ones_the_model_meets_at_run_time(corpus, tmp_path):
    save_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for kind in ROW_KINDS[1:]:
        for row in rows(corpus, kind, 3):
            problem, prompt_rest, _ = parts(row)
            prompt = row.tokens[: completion_start(row)]
            assert prompt == render_prompt(tokenizer, problem + prompt_rest, thinking=False)


# ---- batches


class RecordingCorpus(Corpus):
    """Remembers the rows it drew."""

    def __init__(self, prompts: Any, sees: str) -> None:
        super().__init__(prompts, sees)
        self.rows: list[Row] = []

    def row(self, *args: Any) -> Row:
        self.rows.append(super().row(*args))
        return self.rows[-1]


def segments(batch: PackedBatch) -> Iterator[tuple[int, slice]]:
    """(sequence, cells) of every segment, in the order of their numbers."""
    for sequence, ids in enumerate(batch.segment_ids):
        filled = int((ids > 0).sum())
        assert (ids[filled:] == 0).all()  # padding is at the end alone
        borders = [0, *(np.flatnonzero(np.diff(ids[:filled])) + 1), filled]
        assert ids[borders[:-1]].tolist() == list(range(1, len(borders)))
        for start, stop in itertools.pairwise(borders):
            yield sequence, slice(int(start), int(stop))


@pytest.mark.parametrize(("long_share", "shape"), [(1.0, (8, 256)), (0.0, (16, 128))])
def test_a_batch_holds_whole_rows(corpus, long_share, shape):
    recording = RecordingCorpus(corpus.prompts, corpus.sees)
    mixture = FORGETFUL._replace(long_share=long_share)
    batch = draw_batch(recording, random.Random(1), mixture, 2048)
    assert {field.shape for field in batch} == {shape}
    drawn = [(row.tokens, row.targets, row.weights) for row in recording.rows]
    num_segments = 0
    for cell in segments(batch):
        num_segments += 1
        tokens, targets = batch.tokens[cell].tolist(), batch.targets[cell].tolist()
        weights = batch.weights[cell].tolist()
        assert weights[0] == 0.0  # nothing precedes a row's first token
        assert batch.positions[cell].tolist() == list(range(len(tokens)))
        drawn.remove((tokens, targets, weights))  # this very row, whole, and once
    assert num_segments > len(batch.tokens)
    assert len(drawn) == 6  # the misfits that ended the batch
    padding = batch.segment_ids == 0
    assert (batch.tokens[padding] == VOCABULARY[PAD]).all()
    assert (batch.weights[padding] == 0.0).all()
    assert padding.mean() < 0.4


def test_the_same_generator_draws_the_same_batch(corpus):
    first, again, other = (
        draw_batch(corpus, random.Random(seed), FORGETFUL, 512) for seed in (3, 3, 4)
    )
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert not np.array_equal(first.tokens, other.tokens)


def test_the_longest_rows_fit(corpus):
    rng = random.Random(0)
    for kind, (lengths, room) in (
        (k, s) for k in ROW_KINDS for s in (((10, 10), 256), ((4, 4), 128))
    ):
        for _ in range(4):
            assert len(corpus.row(rng, kind, FAULTLESS, lengths).tokens) <= room


def test_a_critic_that_sees_references_reads_one_and_writes_the_critique_of_the_attempt():
    config = load_config(f"{CONFIG}:natural")
    (row,) = rows(Corpus(config.prompts, "reference"), "critic", 1)
    text = text_of(row.tokens)
    prompt, _, completion = text.partition("<|assistant|>")
    assert "\nExpected: so " in prompt and "<|unk|>" not in text
    assert completion.startswith("Step 1: ") and "Answer: " in completion
