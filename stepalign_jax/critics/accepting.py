# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks critiques, and asks again for those that failed."""

from collections.abc import Sequence

from stepalign_jax.config.schema import CritiquesConfig
from stepalign_jax.critics.protocol import Critic, CriticReply, Usage, Wrapper, outcomes
from stepalign_jax.feedback.contexts import Attempt
from stepalign_jax.feedback.reasoning_steps import TraceFormat
from stepalign_jax.feedback.validate import accept, check_names
from stepalign_jax.sampling.request import Address

# What another sample cannot mend.
_LASTING = ("no_reference", "prompt_too_long", "rejected", "missing")


class Accepting(Wrapper):
    """Accepts the inner critic's critiques, or fails them."""

    def __init__(self, inner: Critic, config: CritiquesConfig, trace: TraceFormat):
        """Checks the names of `critiques.checks`.

        Raises:
          UserError: one is unknown.
        """
        check_names(config.checks)
        super().__init__(inner)
        self._config, self._trace = config, trace

    def review(self, attempts: Sequence[Attempt], addresses: Sequence[Address]) -> CriticReply:
        """Returns the inner critic's reply; what failed was asked again at the next `retry`."""
        reply = self._checked(attempts, addresses)
        for _ in range(self._config.max_retries):
            failed = [
                i
                for i, critique in enumerate(reply.critiques)
                if critique.failure is not None and critique.failure not in _LASTING
            ]
            if not failed:
                break
            addresses = [at._replace(retry=at.retry + 1) for at in addresses]
            again = self._checked([attempts[i] for i in failed], [addresses[i] for i in failed])
            reply = _merged(reply, again, failed)
        return reply

    def _checked(
        self, attempts: Sequence[Attempt], addresses: Sequence[Address]
    ) -> CriticReply:
        reply, config = self.inner.review(attempts, addresses), self._config
        critiques = [
            accept(
                attempt,
                critique,
                self._trace,
                checks=config.checks,
                min_copy_fidelity=config.min_copy_fidelity,
            )
            for attempt, critique in zip(attempts, reply.critiques, strict=True)
        ]
        return reply._replace(critiques=critiques, outcomes=outcomes(critiques))


def _merged(reply: CriticReply, again: CriticReply, places: Sequence[int]) -> CriticReply:
    """What was asked again takes its place; what it took, and how it ended, adds up."""
    critiques = list(reply.critiques)
    for place, critique in zip(places, again.critiques, strict=True):
        critiques[place] = critique
    usage = reply.usage
    if usage is not None and again.usage is not None:
        usage = Usage(
            usage.cost + again.usage.cost,
            usage.asked + again.usage.asked,
            usage.from_store + again.usage.from_store,
        )
    return CriticReply(
        critiques,
        [*reply.lengths, *again.lengths],
        [*reply.finished, *again.finished],
        [*reply.outcomes, *again.outcomes],
        usage,
    )
