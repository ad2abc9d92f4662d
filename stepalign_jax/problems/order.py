# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The order in which problems come: one global order, cut by process, without an end.

Process p of n takes the problems p, p + n, p + 2n, ... of the global order. A shuffle per
process would make the problems of a step depend on the number of processes; this does not.
"""

from collections.abc import Iterator, Sequence

import grain

from stepalign_jax.base.errors import UserError
from stepalign_jax.problems.problem import Problem


class ProblemIterator(Iterator[list[Problem]]):
    """Yields this process's share of each batch; made by `make_problem_iterator`.

    Epochs follow each other without a seam: a batch may end one and begin the next.
    """

    def __init__(
        self,
        dataset: grain.MapDataset[Problem],
        *,
        batch_size: int,
        process_index: int,
        process_count: int,
    ) -> None:
        self._process_count = process_count
        own = dataset[process_index::process_count]
        options = grain.ReadOptions(
            num_threads=0, prefetch_buffer_size=0
        )  # items are in memory
        batches = own.to_iter_dataset(options).batch(batch_size // process_count, batch_fn=list)
        self._iterator = iter(batches)

    def __next__(self) -> list[Problem]:
        return next(self._iterator)

    def get_state(self) -> dict[str, int]:
        """Returns the position in the global order: the same number in every process."""
        local_position = self._iterator.get_state()["next_index"]
        return {"num_problems_seen": local_position * self._process_count}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a position, also one that another number of processes saved.

        Raises:
          UserError: the position does not fall between two rounds of the processes.
        """
        seen = state["num_problems_seen"]
        if seen % self._process_count:
            raise UserError(
                f"the checkpoint stands after {seen} problems, which {self._process_count} "
                "processes cannot share equally: resume on a number of processes that divides "
                "train.problems_per_step"
            )
        self._iterator.set_state({"next_index": seen // self._process_count})


def make_problem_iterator(
    problems: list[Problem],
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> ProblemIterator:
    """Returns endless batches of problems, every epoch in another order.

    Args:
      problems: one epoch.
      batch_size: problems per batch over all processes; each yields
        batch_size / process_count of them.
      seed: of the order.
      process_index: this process.
      process_count: all processes.

    Raises:
      UserError: as `check_batch`.
    """
    check_batch(problems, batch_size, process_count)
    dataset = grain.MapDataset.source(problems).shuffle(seed=seed % 2**32).repeat()
    return ProblemIterator(
        dataset,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
    )


def check_batch(problems: Sequence[Problem], batch_size: int, process_count: int = 1) -> None:
    """Refuses batches that so many problems cannot fill, or processes cannot share.

    Raises:
      UserError: there are fewer problems than a batch takes, or it cannot be cut equally.
    """
    if not problems:
        raise UserError(
            "there are no problems to train on: look at problems.num_train and problems.path"
        )
    if len(problems) < batch_size:
        raise UserError(
            f"a step takes train.problems_per_step={batch_size} different problems, but there "
            f"are {len(problems)} to train on: lower it, or look at problems.num_train, the "
            "problem file and problems.base_avg_below"
        )
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"train.problems_per_step={batch_size} cannot be shared equally by {process_count} "
            "process(es): give a positive multiple of that number"
        )
