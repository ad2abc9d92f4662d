# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Stands for the package reasoning_gym, which tests need not install: what we use of it.

Tests that need the real one are marked slow.
"""

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

__version__ = "0.0-stub"


@dataclass
class Options:
    """What may be set."""

    seed: int = 0
    size: int = 10
    limit: int = 1000


class Base:
    """As in the package: the same text is right, a text that holds the answer partly."""

    def __init__(self, *, seed: int = 0, size: int = 10, limit: int = 1000):
        assert limit > 0, "limit must be positive"
        self.seed, self.size, self.limit = seed, size, limit

    def __len__(self) -> int:
        return self.size

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        expected = entry["answer"]
        return 1.0 if answer == expected else 0.5 if answer and expected in answer else 0.0


class Words(Base):
    """The answer is a word; 3 of 4 questions are different."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        word = "".join(chr(97 + (i * 7 + j + self.seed) % 26) for j in range(1 + i // 4 % 5))
        question = f"Write {word} backwards." if i % 4 != 3 else "Write abc backwards."
        return {
            "question": question,
            "answer": word[::-1] if i % 4 != 3 else "cba",
            "metadata": {},
        }


class Evaluated(Base):
    """The scorer evaluates the answer, as some do."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"question": f"List {i}, {i}.", "answer": f"[{i}, {i}]", "metadata": {"n": i}}

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        return float(eval(answer or "0") == [entry["metadata"]["n"]] * 2)


class Slow(Words):
    """The scorer never ends over one answer."""

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        if answer == "endless":
            time.sleep(3600)
        return super().score_answer(answer, entry)


class Limited(Words):
    """The scorer reads its settings."""

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        return 1.0 if answer and len(answer) <= self.limit else 0.0


class Sums(Base):
    """The answer is a number, and the scorer the package's own."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"question": f"{i}+{self.seed}", "answer": str(i + self.seed), "metadata": {}}


class AnyAnswer(Words):
    """The scorer calls everything right, as one of the package's does."""

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        return float(bool(answer) == bool(entry["answer"]))


class NoAnswer(Base):
    """Brings no answer, as some tasks do not."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"question": f"Colour graph {i}.", "answer": None, "metadata": {}}


class Tuples(Base):
    """The scorer needs what JSON cannot hold."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"question": f"Grid {i}?", "answer": f"{i} {i}", "metadata": {"grid": (i, i)}}

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        found = tuple(map(int, (answer or "0").split()))
        return float(found == entry["metadata"]["grid"])


class GsmSymbolic(Base):
    """Word problems from five templates."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.task_indices = [(7 * i + self.seed) % 5 for i in range(self.size)]

    def __getitem__(self, i: int) -> dict[str, Any]:
        template, n = self.task_indices[i], i + self.seed
        return {
            "question": f"Template {template}: Ann has {n} pears and buys 2. How many? "
            "Give the result as your final answer. Do not include units.",
            "answer": str(n + 2),
            "metadata": {"answer_cot": f"She has {n} pears.\n{n}+2={n + 2}\n#### {n + 2}.0"},
        }


TASKS = {
    "any_answer": AnyAnswer,
    "evaluated": Evaluated,
    "gsm_symbolic": GsmSymbolic,
    "limited": Limited,
    "no_answer": NoAnswer,
    "slow": Slow,
    "sums": Sums,
    "tuples": Tuples,
    "words": Words,
}
factory = SimpleNamespace(DATASETS={name: (task, Options) for name, task in TASKS.items()})

dataset = SimpleNamespace(ProceduralDataset=Base)


def create_dataset(name: str, **options: Any) -> Base:
    return TASKS[name](**options)
