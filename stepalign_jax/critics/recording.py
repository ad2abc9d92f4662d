# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes down what a critic without a server said, so that it can be replayed.

It is never read back by the run itself: a model here answers the same at the same address, and
a resumed run asks it again, in the same batches. So the store changes no bit of a run.
"""

import dataclasses
import time
from collections.abc import Sequence

from stepalign_jax.base.hashing import digest
from stepalign_jax.config.schema import CriticConfig, PromptsConfig
from stepalign_jax.critics.protocol import Critic, CriticReply, Wrapper, outcomes
from stepalign_jax.critics.store import CritiqueStore, StoredCritique
from stepalign_jax.feedback.contexts import Attempt
from stepalign_jax.sampling.request import Address

_NOT_ASKED = ("no_reference", "prompt_too_long")


class Recording(Wrapper):
    """Stores what the inner critic said."""

    def __init__(
        self, inner: Critic, config: CriticConfig, prompts: PromptsConfig, store: CritiqueStore
    ):
        super().__init__(inner)
        self._store = store
        kind = getattr(config, "kind", type(config).__name__)
        self._settings = digest(dataclasses.asdict(config), prompts.critic)
        self.name = f"{kind}#{self._settings[:8]}"

    def review(self, attempts: Sequence[Attempt], addresses: Sequence[Address]) -> CriticReply:
        """Returns the inner critic's reply, and stores each critique that it was asked for."""
        started = time.monotonic()
        reply = self.inner.review(attempts, addresses)
        seconds = (time.monotonic() - started) / max(len(attempts), 1)
        asked = [i for i, c in enumerate(reply.critiques) if c.failure not in _NOT_ASKED]
        lengths = dict(zip(asked, reply.lengths, strict=False))
        for i in asked:
            texts = (attempts[i].problem.text, attempts[i].text)
            at, critique = addresses[i], reply.critiques[i]
            row = StoredCritique(
                key=digest(*texts, self._settings, list(at)),
                question=digest(*texts),
                critic=self.name,
                step=at.step,
                sample=at.sample,
                retry=at.retry,
                text=critique.text,
                outcome=critique.failure or "ok",
                judged=True,
                sees_answer=False,
                prompt_tokens=0,
                tokens=lengths.get(i, 0),
                seconds=seconds,
                cost=0.0,
                shared=False,
            )
            if not self._store.holds(row.key):
                self._store.add(row)
        return reply._replace(outcomes=outcomes(reply.critiques))
