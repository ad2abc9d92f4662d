# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A critic that says again what a store holds, with no server and no model.

It finds a critique by problem and rollout, whatever it was asked with. So another loss, teacher
template or set of checks can be tried on the same critiques, as far as the rollouts are the
same: all of the first step, and later ones as long as the weights agree.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.hashing import digest
from stepalign_jax.config.critics import ReplayCritic
from stepalign_jax.critics.judging import reply_of
from stepalign_jax.critics.protocol import CriticReply, Surroundings, open_critic
from stepalign_jax.critics.store import ANSWERED, StoredCritique, read_store
from stepalign_jax.feedback.contexts import Attempt
from stepalign_jax.problems.problem import Problem
from stepalign_jax.sampling.request import Address


class Replay:
    """A `Critic` that reads a store."""

    def __init__(self, config: ReplayCritic, surroundings: Surroundings):
        """Reads the store.

        Raises:
          UserError: it cannot be read, or does not say whose critiques are meant.
        """
        self._config = config
        self._prompts, self._grade = surroundings.prompts, surroundings.grade
        rows = read_store(Path(config.store))
        wanted = _choose(sorted({row.critic for row in rows}), config)
        self._rows: dict[str, list[StoredCritique]] = defaultdict(list)
        for row in rows:
            if row.critic == wanted:
                self._rows[row.question].append(row)

    def load(self) -> None:
        """Does nothing: the store was read when the critic was opened."""

    def fingerprint(self) -> str:
        """Returns a hash of the critiques that it may say."""
        return digest([row for rows in self._rows.values() for row in rows])[:16]

    def review(self, attempts: Sequence[Attempt], addresses: Sequence[Address]) -> CriticReply:
        """Returns the stored critique of each attempt; a missing one fails as `missing`.

        Raises:
          UserError: one is missing, and the config requires all.
        """
        rows = list(map(self._find, attempts, addresses))
        asked = [row for row, at in zip(rows, addresses, strict=True) if at.retry == 0]
        if self._config.require_all and None in asked:
            raise UserError(
                f"{self._config.store} lacks {asked.count(None)} of {len(asked)} critiques of "
                f"step {addresses[0].step} (critic.require_all): its rollouts are others. Mask "
                "them with --critic.require_all=false, or ask a critic."
            )
        return reply_of(
            rows,
            attempts,
            self._prompts,
            self._grade,
            accepts=self._config.accepts,
            absent="missing",
            num_asked=0,
            from_store=len(rows) - rows.count(None),
        )

    def example_prompt(self, problem: Problem) -> str:
        """Nothing is asked."""
        return ""

    def _find(self, attempt: Attempt, address: Address) -> StoredCritique | None:
        """The newest row of this very sample, else of an equal rollout; answers come first."""

        def fit(row: StoredCritique) -> tuple[bool, bool]:
            same = (row.step, row.sample) == (address.step, address.sample)
            return same, row.outcome in ANSWERED

        rows = self._rows.get(digest(attempt.problem.text, attempt.text), [])
        rows = [row for row in reversed(rows) if row.retry == address.retry]
        return max(rows, key=fit, default=None)


def _choose(critics: Sequence[str], config: ReplayCritic) -> str:
    if not critics:
        raise UserError(f"{config.store} holds no critiques yet: name another store.")
    if config.critic in critics or (not config.critic and len(critics) == 1):
        return config.critic or critics[0]
    asked = f"critic.critic={config.critic} is not in" if config.critic else "name one of"
    raise UserError(
        f"{asked} {config.store}, which holds critiques by {', '.join(critics)}: choose with "
        f"--critic.critic={critics[0]}"
    )


@open_critic.register
def _(config: ReplayCritic, surroundings: Surroundings) -> Replay:
    return Replay(config, surroundings)
