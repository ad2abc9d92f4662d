# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The corpus of the miniature's pre-training: rows for each of its roles.

For the packaged model it plants one systematic mistake. In the *solver's* role nearly every
addition forgets its carry; in the *conditioned* roles (critic, and teacher with a context that
belongs to the problem) the arithmetic is right. A teacher whose context is empty, or belongs to
another problem, behaves as the solver does, so its template alone corrects nothing. The skill
that distillation brings out is therefore latent in the weights.

A row holds a prompt and a completion. Where a conditioned role reads a *given* wrong prefix
(the tokens a solver sampled), the target at the first wrong digit is the right digit, the
rest of that number has no target, and later targets continue from the number as given. Here
the solver forgot the carry of 47 + 24:

    tokens    4 7 + 2 4 = 6 1 \\n Answer:  6 1
    targets   4 7 + 2 4 = 7 - -  Answer:  6 1        - has weight 0
"""

import random
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from stepalign_jax.config.schema import PromptsConfig
from stepalign_jax.feedback.prompts import critic_prompt, solver_prompt, teacher_prompt
from stepalign_jax.problems.arithmetic import (
    FORWARD_SHARE,
    Operation,
    Term,
    carries,
    correct_trace,
    draw_problem,
    evaluate,
    format_trace,
    order_of,
    parse_terms,
)
from stepalign_jax.problems.problem import Problem
from stepalign_jax.tiny.tokenizer import ASSISTANT, END, PAD, USER, VOCABULARY, encode

FIX_WEIGHT = 3.0  # of critique reasoning steps that differ from the attempt


class Slips(NamedTuple):
    """Probabilities of mistakes in an attempt, per reasoning step."""

    forget_carry: float  # of additions that carry
    result: float  # any other wrong result
    operand: float  # a wrong term is added


CLEAN = Slips(0.0, 0.0, 0.0)
HEAVY = Slips(0.5, 0.5, 0.05)
LIGHT = Slips(0.1, 0.1, 0.01)


class Mixture(NamedTuple):
    """One phase of the corpus: shares of tokens by row kind, and who makes mistakes."""

    drill: float
    solver: float
    critique: float  # teacher with a critique of the attempt it scores
    reference: float  # teacher with the reference solution
    empty: float  # teacher with an empty context
    other: float  # teacher with another problem's context
    critic: float
    solver_slips: Slips  # of the solver corpus
    long_share: float  # of batches with problems of 5 to 10 reasoning steps; else 3 or 4


# Row kinds and their typical lengths in tokens, on problems of 3 to 10 reasoning steps.
_TYPICAL_LENGTHS = {
    "drill": 98,
    "solver": 73,
    "critique": 128,
    "reference": 124,
    "empty": 72,
    "other": 125,
    "critic": 130,
}
ROW_KINDS = tuple(_TYPICAL_LENGTHS)


@dataclass
class Row:
    """Token ids, the target at each position, and that target's loss weight."""

    tokens: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, text: str, weight: float = 1.0) -> None:
        """Appends text that is its own target."""
        ids = encode(text)
        self.tokens.extend(ids)
        self.targets.extend(ids)
        self.weights.extend([weight] * len(ids))

    def add_given(self, given: str, right: str) -> None:
        """Appends `given`, supervised up to its first difference from `right`."""
        given_ids, right_ids = encode(given), encode(right)
        self.tokens.extend(given_ids)
        same = next(
            (i for i, (g, r) in enumerate(zip(given_ids, right_ids, strict=False)) if g != r),
            None,
        )
        if same is None:  # equal: both end in a delimiter, so neither is a prefix of the other
            self.targets.extend(given_ids)
            self.weights.extend([1.0] * len(given_ids))
            return
        self.targets.extend((*given_ids[:same], right_ids[same], *given_ids[same + 1 :]))
        self.weights.extend([1.0] * (same + 1) + [0.0] * (len(given_ids) - same - 1))


class Claim(NamedTuple):
    """A reasoning step as an attempt states it, and the term it meant to add."""

    stated: Operation
    meant: Operation  # same left; the right term; the true result of the *stated* operands


def draw_order(rng: random.Random, num_terms: int) -> list[int]:
    """Returns forward or backward order by the solver's prior."""
    return order_of(num_terms, forward=rng.random() < FORWARD_SHARE)


def draw_attempt(
    rng: random.Random, terms: list[Term], order: list[int], slips: Slips
) -> list[Claim]:
    """Returns the reasoning steps of an attempt that errs with the given probabilities.

    Later reasoning steps continue from the result that the one before states. An attempt that
    leaves 0..99 is drawn again, up to 8 times; the last draw has forgotten carries alone.
    """
    for trial in range(8):
        used = slips if trial < 7 else Slips(slips.forget_carry, 0.0, 0.0)
        claims = _draw_attempt_once(rng, list(terms), order, used)
        if all(0 <= claim.stated.result <= 99 for claim in claims):
            break
    return claims


def _draw_attempt_once(
    rng: random.Random, terms: list[Term], order: list[int], slips: Slips
) -> list[Claim]:
    product_at = next(i for i, t in enumerate(terms) if "*" in t.text)
    left, right = (int(f) for f in terms[product_at].text.split("*"))
    first = _claim(rng, Operation(left, "*", right, left * right), right, slips)
    terms[product_at] = terms[product_at]._replace(value=first.stated.result)
    claims, running = [first], terms[0].value
    for index in order:
        sign, _, value = terms[index]
        stated_value = rng.choice(terms).value if rng.random() < slips.operand else value
        true = Operation(running, sign, stated_value, evaluate(running, sign, stated_value))
        claims.append(_claim(rng, true, value, slips))
        running = claims[-1].stated.result
    return claims


def _claim(rng: random.Random, true: Operation, meant_right: int, slips: Slips) -> Claim:
    result = true.result
    if carries(true) and rng.random() < slips.forget_carry:
        result -= 10
    elif rng.random() < slips.result:
        result = rng.choice(
            (result - 1, result + 1, result - 10, result + 10, rng.randint(0, 99))
        )
    return Claim(true._replace(result=result), true._replace(right=meant_right))


def stated_trace(claims: list[Claim]) -> str:
    """Returns an attempt's text."""
    return format_trace([claim.stated for claim in claims])


def add_given_trace(row: Row, claims: list[Claim]) -> None:
    """Appends an attempt, with the tokens that a conditioned teacher should say as targets."""
    for number, (stated, meant) in enumerate(claims, start=1):
        row.add(f"Step {number}: ")
        row.add(f"{stated.left}{stated.operator}")
        row.add_given(f"{stated.right}=", f"{meant.right}=")
        row.add_given(f"{stated.result}\n", f"{meant.result}\n")
    row.add(f"Answer: {claims[-1].stated.result}{END}")


def start_row(user_text: str) -> Row:
    """Returns a row holding an unsupervised prompt."""
    row = Row()
    row.add(f"{USER}{user_text}{ASSISTANT}", weight=0.0)
    return row


class Corpus:
    """Draws rows; every random choice comes from the generator passed in.

    Attributes:
      prompts: the role prompts of the configuration the model will be used with.
      sees: `critic.sees` of that configuration.
    """

    def __init__(self, prompts: PromptsConfig, sees: str):
        self.prompts, self.sees = prompts, sees

    def row(
        self, rng: random.Random, kind: str, mixture: Mixture, reasoning_steps: tuple[int, int]
    ) -> Row:
        """Returns one row of `kind`, a field of `Mixture`, on a problem of that length."""
        if kind == "drill":
            return self._drill(rng)
        problem = draw_problem(rng, "pretraining", rng.randint(*reasoning_steps))
        terms = parse_terms(problem.text)
        order = draw_order(rng, len(terms))
        if kind in ("solver", "empty", "other"):
            prompt = self._solver_like_prompt(rng, kind, problem, reasoning_steps)
            row = start_row(prompt)
            row.add(stated_trace(draw_attempt(rng, terms, order, mixture.solver_slips)) + END)
            return row
        if rng.random() < 0.08:  # a derivation that is neither forward nor backward
            rng.shuffle(order)
        slips = rng.choices((mixture.solver_slips, HEAVY, LIGHT, CLEAN), (5, 2, 2, 1))[0]
        if slips == mixture.solver_slips:
            slips = slips._replace(operand=0.01)
        claims = draw_attempt(rng, terms, order, slips)
        attempt = stated_trace(claims)
        critique = correct_trace(problem.text, attempt)
        if kind == "critic":
            prompt = critic_prompt(self.prompts, problem, attempt, self.sees)
            assert prompt is not None  # only a critic that sees references may lack one
            row = start_row(prompt)
            _add_critique(row, critique, attempt)
            return row
        context = critique if kind == "critique" else problem.reference or ""
        row = start_row(teacher_prompt(self.prompts, problem, context))
        add_given_trace(row, claims)
        return row

    def _solver_like_prompt(
        self, rng: random.Random, kind: str, problem: Problem, lengths: tuple[int, int]
    ) -> str:
        if kind == "solver":
            return solver_prompt(self.prompts, problem)
        context = ""
        if kind == "other":
            other = draw_problem(rng, "pretraining", rng.randint(*lengths))
            terms = parse_terms(other.text)
            claims = draw_attempt(rng, terms, draw_order(rng, len(terms)), CLEAN)
            context = rng.choice((stated_trace(claims), other.reference or ""))
        return teacher_prompt(self.prompts, problem, context)

    def _drill(self, rng: random.Random) -> Row:
        row = Row()
        for _ in range(12):
            operator = rng.choice("+++--*")
            if operator == "*":
                left, right = rng.randint(2, 9), rng.randint(2, 9)
            elif operator == "+":
                left = rng.randint(0, 97)
                right = rng.randint(2, min(81, 99 - left))
            else:
                left = rng.randint(2, 99)
                right = rng.randint(2, min(81, left))
            row.add(f"{left}{operator}{right}=", weight=0.0)
            row.add(f"{evaluate(left, operator, right)}\n")
        return row


def _add_critique(row: Row, critique: str, attempt: str) -> None:
    attempt_lines = attempt.split("\n")
    for number, line in enumerate(critique.split("\n")):
        copied = number < len(attempt_lines) and line == attempt_lines[number]
        is_last = line.startswith("Answer")
        row.add(line + (END if is_last else "\n"), weight=1.0 if copied else FIX_WEIGHT)


class PackedBatch(NamedTuple):
    """[B, T] int32 tokens, targets, positions, segment_ids (0 = padding) and float32 weights.

    `targets[b, t]` is what the logits at position t-1 of the same segment should predict.
    """

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    weights: np.ndarray


def draw_batch(
    corpus: Corpus, rng: random.Random, mixture: Mixture, num_tokens: int
) -> PackedBatch:
    """Returns rows packed first-fit into about `num_tokens` token positions.

    A batch holds long problems in sequences of 256 tokens, or short ones in 128: at these
    sizes attention takes as much time as the rest of the model, and grows with the sequence.
    """
    is_long = rng.random() < mixture.long_share
    reasoning_steps, length = ((5, 10), 256) if is_long else ((3, 4), 128)
    num_sequences = num_tokens // length
    shape = (num_sequences, length)
    batch = PackedBatch(
        tokens=np.full(shape, VOCABULARY[PAD], np.int32),
        targets=np.full(shape, VOCABULARY[PAD], np.int32),
        positions=np.zeros(shape, np.int32),
        segment_ids=np.zeros(shape, np.int32),
        weights=np.zeros(shape, np.float32),
    )
    filled, segments = [0] * num_sequences, [0] * num_sequences
    # Shares are of tokens; a kind's rows are drawn in inverse proportion to their length.
    odds = [getattr(mixture, kind) / _TYPICAL_LENGTHS[kind] for kind in ROW_KINDS]
    misfits = 0
    while misfits < 6:
        row = corpus.row(rng, rng.choices(ROW_KINDS, odds)[0], mixture, reasoning_steps)
        size = len(row.tokens)
        place = next((i for i in range(num_sequences) if filled[i] + size <= length), None)
        if place is None:
            misfits += 1
            continue
        cells = (place, slice(filled[place], filled[place] + size))
        segments[place] += 1
        batch.tokens[cells], batch.targets[cells] = row.tokens, row.targets
        batch.positions[cells], batch.segment_ids[cells] = range(size), segments[place]
        batch.weights[cells] = row.weights
        batch.weights[place, filled[place]] = 0.0  # nothing precedes a row's first token
        filled[place] += size
    return batch
