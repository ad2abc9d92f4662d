# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Generated arithmetic problems that can check their own reasoning steps.

A problem is a sum of `n` terms, one of them a product of two digits, for example
`47+3*8-12`. It takes `n` reasoning steps: the product, then one addition or subtraction
per further term. Two derivations are canonical and share nothing but the product and
the answer: *forward* adds the terms from left to right, *backward* starts from the first
term too and adds the others from right to left. Every partial result lies in 0..99.

    trace (forward)      Step 1: 3*8=24      reference (backward)   so 3*8 gives 24;
                         Step 2: 47+24=71                           so 47-12 gives 35;
                         Step 3: 71-12=59                           so 35+24 gives 59;
                         Answer: 59                                 Total 59
"""

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.hashing import stable_hash32
from stepalign_jax.problems.problem import Problem

MIN_REASONING_STEPS, MAX_REASONING_STEPS = 3, 10
MAX_PROBLEMS = 1_000_000
_MOST_DRAWS = 20  # for each problem asked for
FORWARD_SHARE = 0.7  # of references, and of the solver's own derivations in pre-training
# Percent of all problem texts, by hash: the four sets cannot share a problem.
_SPLIT_PERCENT = {"pretraining": 70, "training": 15, "validation": 5, "test": 10}
_TERM = re.compile(r"([+-]?)(\d+(?:\*\d+)?)")
_MAX_DIGITS = 20  # a runaway rollout may write a number that int() refuses to read
_OPERATION = re.compile(r"(-?\d+)([-+*])(\d+)=(-?\d+)")


class Term(NamedTuple):
    """One summand: `sign` is + or -, `text` its digits as printed, `value` unsigned."""

    sign: str
    text: str
    value: int

    @property
    def addend(self) -> tuple[str, int]:
        """Sign and value."""
        return self.sign, self.value


class Operation(NamedTuple):
    """One reasoning step: left operator right = result."""

    left: int
    operator: str
    right: int
    result: int

    @property
    def addend(self) -> tuple[str, int]:
        """The signed term that was added: operator and right operand."""
        return self.operator, self.right

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}={self.result}"


def evaluate(left: int, operator: str, right: int) -> int:
    """Returns the true result of one operation."""
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def parse_terms(text: str) -> list[Term]:
    """Returns the terms of a problem text such as `47+3*8-12`."""
    terms = []
    for sign, digits in _TERM.findall(text):
        factors = digits.split("*")
        value = int(factors[0]) * int(factors[1]) if len(factors) == 2 else int(digits)
        terms.append(Term(sign or "+", digits, value))
    return terms


def order_of(num_terms: int, *, forward: bool) -> list[int]:
    """Returns the order in which the terms after the first are added."""
    rest = list(range(1, num_terms))
    return rest if forward else rest[::-1]


def derive(terms: list[Term], order: list[int]) -> list[Operation]:
    """Returns the correct operations: the product, then the terms in `order`."""
    return [_product(terms), *_accumulate(terms, terms[0].value, order)]


def _product(terms: list[Term]) -> Operation:
    left, right = next(t.text for t in terms if "*" in t.text).split("*")
    return Operation(int(left), "*", int(right), int(left) * int(right))


def _accumulate(terms: list[Term], start: int, order: list[int]) -> Iterator[Operation]:
    for index in order:
        term = terms[index]
        result = evaluate(start, term.sign, term.value)
        yield Operation(start, term.sign, term.value, result)
        start = result


def format_trace(operations: list[Operation], answer: int | None = None) -> str:
    """Returns the solver's wording; the answer defaults to the last result."""
    lines = [f"Step {i}: {op}\n" for i, op in enumerate(operations, start=1)]
    return "".join(lines) + f"Answer: {operations[-1].result if answer is None else answer}"


def format_reference(operations: list[Operation]) -> str:
    """Returns the same derivation in the reference solutions' wording."""
    parts = [f"so {op.left}{op.operator}{op.right} gives {op.result}; " for op in operations]
    return "".join(parts) + f"Total {operations[-1].result}"


def parse_operations(attempt: str) -> list[Operation]:
    """Returns the operations found in a trace, in order; other text is passed over."""
    return [
        Operation(int(left), operator, int(right), int(result))
        for left, operator, right, result in _OPERATION.findall(attempt)
        if max(len(left), len(right), len(result)) <= _MAX_DIGITS
    ]


def _correct_prefix(terms: list[Term], attempt: list[Operation]) -> tuple[int, list[int]]:
    """Returns how many leading operations are right, and which terms they used up.

    The first operation has to be the product; each later one has to add an unused term
    to the running result. Any order of the terms is a correct derivation.
    """
    if not attempt or attempt[0] != _product(terms):
        return 0, []
    used: list[int] = []
    running = terms[0].value
    for operation in attempt[1:]:
        unused = (i for i in range(1, len(terms)) if i not in used)
        match = next((i for i in unused if terms[i].addend == operation.addend), None)
        true_result = running if match is None else evaluate(running, *terms[match].addend)
        if match is None or operation.left != running or operation.result != true_result:
            break
        used.append(match)
        running = true_result
    return 1 + len(used), used


def _direction(terms: list[Term], used: list[int], attempt: list[Operation]) -> bool:
    """Returns True if the attempt reads as forward: its first addition decides."""
    if used:
        return used[0] == 1
    last = terms[-1].addend
    return not (len(attempt) > 1 and attempt[1].addend == last and terms[1].addend != last)


def correct_trace(problem: str, attempt: str) -> str:
    """Returns the oracle critique: correct reasoning steps kept, the rest put right.

    The correct prefix is copied, the first wrong reasoning step is redone (with the term
    it meant to add, where that can be told), and the remaining terms follow in the
    direction the attempt had taken.
    """
    terms, operations = parse_terms(problem), parse_operations(attempt)
    num_correct, used = _correct_prefix(terms, operations)
    running = terms[0].value
    kept = [_product(terms)]
    for operation in _accumulate(terms, running, used):
        kept.append(operation)
        running = operation.result
    rest = [
        i
        for i in order_of(len(terms), forward=_direction(terms, used, operations))
        if i not in used
    ]
    if 0 < num_correct < len(operations):
        meant = operations[num_correct].addend
        rest.sort(key=lambda i: terms[i].addend != meant)  # stable: the meant term comes first
    return format_trace(kept + list(_accumulate(terms, running, rest)))


def first_error(problem: str, attempt: str) -> int | None:
    """Returns the 0-based index of the first wrong reasoning step, or None.

    A missing reasoning step counts as wrong at the place where it is missing.
    """
    terms, operations = parse_terms(problem), parse_operations(attempt)
    num_correct, _ = _correct_prefix(terms, operations)
    complete = num_correct == len(terms) and len(operations) == num_correct
    return None if complete else num_correct


def carries(operation: Operation) -> bool:
    """Returns True for an addition whose units carry into the tens."""
    return operation.operator == "+" and operation.left % 10 + operation.right % 10 >= 10


def _stays_in_range(terms: list[Term], order: list[int]) -> bool:
    """True if every partial result is in 0..99, even with every carry forgotten.

    A forgotten carry lowers a result by exactly 10 and leaves its units digit alone, so
    forgetting them all is the lowest path a carry-forgetting solver can take.
    """
    true_value = lowest = terms[0].value
    for index in order:
        operation = Operation(true_value, terms[index].sign, terms[index].value, 0)
        change = evaluate(0, operation.operator, operation.right)
        true_value += change
        lowest += change - 10 * carries(operation)
        if not (lowest >= 0 and true_value <= 99):
            return False
    return True


def draw_problem_text(rng: random.Random, num_reasoning_steps: int) -> str:
    """Returns a random problem with `num_reasoning_steps` terms."""
    largest = 60 if num_reasoning_steps <= 4 else 40 if num_reasoning_steps <= 6 else 30
    while True:
        product_at = rng.randrange(num_reasoning_steps)
        terms = []
        for index in range(num_reasoning_steps):
            sign = "+" if index == 0 else rng.choice("+-")
            if index == product_at:
                a, b = rng.randint(2, 9), rng.randint(2, 9)
                terms.append(Term(sign, f"{a}*{b}", a * b))
            else:
                value = rng.randint(2, largest)
                terms.append(Term(sign, str(value), value))
        orders = (order_of(num_reasoning_steps, forward=f) for f in (True, False))
        if all(_stays_in_range(terms, order) for order in orders):
            return "".join(t.sign + t.text for t in terms).removeprefix("+")


def split_of(text: str) -> str:
    """Returns the one split a problem text belongs to, by its stable hash."""
    bucket = stable_hash32(text) % 100
    for split, percent in _SPLIT_PERCENT.items():
        if bucket < percent:
            return split
        bucket -= percent
    raise AssertionError("split percentages do not sum to 100")


def draw_problem(rng: random.Random, split: str, num_reasoning_steps: int) -> Problem:
    """Returns a random problem of `split` with its reference solution."""
    while split_of(text := draw_problem_text(rng, num_reasoning_steps)) != split:
        pass
    terms = parse_terms(text)
    # From the problem itself, apart from any solver's choice: same text, same reference.
    forward = random.Random(stable_hash32("reference " + text)).random() < FORWARD_SHARE
    operations = derive(terms, order_of(len(terms), forward=forward))
    answer = str(operations[-1].result)
    return Problem(text, answer, format_reference(operations), "arithmetic", correct_trace)


def arithmetic_problems(
    split: str, num_problems: int, min_reasoning_steps: int, max_reasoning_steps: int
) -> list[Problem]:
    """Returns `num_problems` different problems, always the same ones for the same arguments.

    Raises:
      UserError: if the numbers of reasoning steps lie outside 3..10, or so many different
        problems cannot be had.
    """
    low, high = min_reasoning_steps, max_reasoning_steps
    if not MIN_REASONING_STEPS <= low <= high <= MAX_REASONING_STEPS:
        raise UserError(
            f"problems.min_reasoning_steps={min_reasoning_steps} and "
            f"max_reasoning_steps={max_reasoning_steps} must satisfy "
            f"{MIN_REASONING_STEPS} <= min <= max <= {MAX_REASONING_STEPS}."
        )
    if num_problems > MAX_PROBLEMS:
        raise UserError(
            f"{num_problems} arithmetic problems are asked for, but a set has at most "
            f"{MAX_PROBLEMS}: lower problems.num_train, num_validation or num_test."
        )
    rng = random.Random(stable_hash32(f"{split} {min_reasoning_steps} {max_reasoning_steps}"))
    problems: dict[str, Problem] = {}
    num_drawn = 0
    while len(problems) < num_problems:
        num_drawn += 1
        if num_drawn > _MOST_DRAWS * num_problems:
            raise UserError(
                f"{num_problems} different arithmetic problems with {low} to {high} reasoning "
                f"steps are asked for, but {num_drawn} draws gave {len(problems)}: ask for "
                "fewer."
            )
        num_reasoning_steps = rng.randint(min_reasoning_steps, max_reasoning_steps)
        problem = draw_problem(rng, split, num_reasoning_steps)
        problems.setdefault(problem.text, problem)
    return list(problems.values())
