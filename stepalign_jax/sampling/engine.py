# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Samples completions for lists of requests with one model."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Rollouts
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.sampling import layout
from stepalign_jax.sampling.kept import Completion, Kept, request_keys
from stepalign_jax.sampling.programs import decode_model
from stepalign_jax.sampling.request import Request, check_requests
from stepalign_jax.sampling.scheduler import deal, prompt_layout
from stepalign_jax.sampling.session import DECODE_STEPS, DecodeChunk, Session


class Engine:
    """A model that samples; it holds no weights and no random state.

    A request's tokens depend on the weights, its prompt, its address and its parameters, not
    on what is sampled beside it.
    """

    def __init__(
        self,
        sizes: Qwen3Config,
        compute_dtype: Any,
        lora: LoraSpec | None,
        stop_ids: Sequence[int],
        pad_id: int,
        *,
        kernel: str = "xla",
    ):
        """Makes an engine for any weights of these sizes.

        Args:
          sizes: of the network.
          compute_dtype: of the computation and of cached keys and values.
          lora: size of the adapter, where the variables have one.
          stop_ids: token ids that end every completion.
          pad_id: what stands behind a completion in `Rollouts.tokens`.
          kernel: what attends in a prefill (`model.kernels`).
        """
        self._model = decode_model(sizes, compute_dtype, lora, kernel=kernel)
        self._stop_ids = tuple(int(token) for token in stop_ids)
        self._pad_id = int(pad_id)

    def prepare(self, variables: layout.Variables) -> layout.Variables:
        """The weights as decoding reads them fastest, for calls that share them.

        The layers are unrolled, since decoding reads separate arrays faster than slices of
        a stacked one. This takes extra memory: one copy of the layers in the compute dtype,
        and of embedding and head if that is not their dtype. On a CPU large matrices lie in
        blocks of rows (`row_blocks`); there a tied head takes a copy of the embedding.
        On a mesh they are cut as sampling wants them (`parallel.mesh`).
        Weights that are in this layout already stay as they are.
        """
        if layout.is_decode_layout(variables):
            return variables
        return layout.prepare(self._model, variables)

    def session(
        self, variables: layout.Variables, *, num_slots: int, max_length: int
    ) -> Session:
        """A session that takes requests while it runs.

        Args:
          variables: as in `sample`.
          num_slots: requests that are decoded together.
          max_length: tokens of a prompt and its completion.

        Raises:
          UserError: `max_length` exceeds the model's positions.
        """
        limit = self._model.config.max_positions
        if max_length > limit:
            raise UserError(
                f"a session for {max_length} tokens of prompt and completion exceeds the "
                f"model's {limit} positions: lower max_length."
            )
        return self._session(self.prepare(variables), num_slots, max_length)

    def sample(
        self,
        variables: layout.Variables,
        requests: Sequence[Request],
        *,
        batch_size: int,
        progress: Callable[[int], None] | None = None,
        kept: Kept | None = None,
    ) -> Rollouts:
        """Completes the prompt of each request.

        There are always `batch_size` slots, whatever the number of requests, so that a call
        compiles nothing that an earlier one with prompts of these widths did. On a mesh their
        number is rounded up until the devices share them. On a CPU the sessions of a small
        model (`layout.num_sessions`) share them.

        Args:
          variables: {"params": ...} for the base, with "lora" beside it for the adapted
            model; in the stacked form, and then prepared for this call, or from `prepare`.
          requests: N of them.
          batch_size: the number of slots.
          progress: called with the number of requests done so far, whenever some are.
          kept: completions on disk: those that are there are taken from it, the others are
            added as they end.

        Returns:
          Rollouts of NumPy arrays [N, T], in the order of `requests`; T is the largest
          `max_new_tokens`.

        Raises:
          UserError: a prompt is empty, or leaves less room than its `max_new_tokens`.
        """
        check_requests(requests, self._model.config.max_positions)
        num_columns = max((r.params.max_new_tokens for r in requests), default=0)
        results = _empty(len(requests), num_columns, self._pad_id)
        if not requests:
            return results  # and no copy of the weights for it
        keys = [] if kept is None else self._keys(variables, requests, batch_size)
        known = set() if kept is None else _place_kept(results, keys, kept)
        variables = self.prepare(variables)
        # Of all requests, so that no shape depends on which of them are known.
        prompts = [tuple(request.prompt) for request in requests]
        shapes = prompt_layout(prompts)
        num_sessions = min(layout.num_sessions(variables), batch_size)
        dealt = [[i for i in share if i not in known] for share in deal(prompts, num_sessions)]
        shares = [share for share in dealt if share]
        num_slots = -(-batch_size // num_sessions)
        num_done, lock = [0] * len(shares), threading.Lock()
        stopped = threading.Event()

        def serve(index: int) -> None:
            share = np.array(shares[index])
            session = self._session(variables, num_slots, shapes.max_length(num_columns))
            session.submit([requests[i] for i in share], shapes)
            while not session.over and not stopped.is_set():
                rows = _place(results, share, session.step(DECODE_STEPS))
                with lock:
                    num_done[index] = session.num_done
                    if kept is not None:
                        self._keep(kept, keys, results, requests, rows)
                    if progress is not None:
                        progress(len(known) + sum(num_done))

        if len(shares) == 1:
            # In this thread, which knows the mesh: a new one would not.
            serve(0)
        elif shares:
            with ThreadPoolExecutor(num_sessions) as pool:
                try:
                    list(pool.map(serve, range(len(shares))))
                except BaseException:
                    stopped.set()  # a signal came: the pool waits for its threads
                    raise
        finished = [self._stopped(results, requests, row) for row in range(len(requests))]
        return results.replace(finished=np.array(finished))  # pyright: ignore[reportAttributeAccessIssue]

    def _stopped(self, results: Rollouts, requests: Sequence[Request], row: int) -> bool:
        """Whether the completion of a row ends in a stop token so far."""
        last = int(results.tokens[row, results.lengths[row] - 1])
        return last in self._stop_ids or last in requests[row].params.stop_ids

    def _keys(
        self, variables: layout.Variables, requests: Sequence[Request], batch_size: int
    ) -> list[str]:
        model = self._model
        words = repr((model.config, model.dtype, model.lora, self._stop_ids, batch_size))
        return request_keys(words, variables, requests)

    def _keep(
        self,
        kept: Kept,
        keys: Sequence[str],
        results: Rollouts,
        requests: Sequence[Request],
        rows: Sequence[int],
    ) -> None:
        """Keeps those of the rows that are complete."""
        for row in rows:
            length = int(results.lengths[row])
            whole = length == requests[row].params.max_new_tokens
            if whole or self._stopped(results, requests, row):
                tokens, logprobs = results.tokens[row, :length], results.logprobs[row, :length]
                kept.add(keys[row], Completion(tokens.tolist(), logprobs.tolist()))

    def _session(self, variables: layout.Variables, num_slots: int, max_length: int) -> Session:
        return Session(
            self._model,
            variables,
            num_slots=layout.whole_batch(num_slots, layout.batch_shards(self._model.config)),
            max_length=max_length,
            stop_ids=self._stop_ids,
            dtype=self._model.dtype,
        )


def _empty(num_requests: int, num_columns: int, pad_id: int) -> Rollouts:
    shape = (num_requests, num_columns)
    return Rollouts(
        tokens=np.full(shape, pad_id, np.int32),
        logprobs=np.zeros(shape, np.float32),
        lengths=np.zeros(num_requests, np.int32),
        finished=np.zeros(num_requests, bool),
    )


def _place_kept(results: Rollouts, keys: Sequence[str], kept: Kept) -> set[int]:
    """Fills in the rows that are kept, and returns which those are."""
    known = set()
    for row, key in enumerate(keys):
        if (completion := kept.find(key)) is not None:
            length = len(completion.tokens)
            for name in ("tokens", "logprobs"):
                getattr(results, name)[row, :length] = getattr(completion, name)
            results.lengths[row] = length  # pyright: ignore[reportIndexIssue]
            known.add(row)
    return known


def _place(results: Rollouts, share: np.ndarray, chunk: DecodeChunk) -> list[int]:
    """Copies a chunk's tokens to the rows of their requests, `share` by session's number.

    Returns the rows.
    """
    steps = np.arange(chunk.tokens.shape[0])[:, None]
    step, slot = np.nonzero(steps < chunk.count)
    rows, columns = share[chunk.requests[slot]], chunk.first[slot] + step
    for name in ("tokens", "logprobs"):
        getattr(results, name)[rows, columns] = getattr(chunk, name)[step, slot]
    live = chunk.requests >= 0
    results.lengths[share[chunk.requests[live]]] = (chunk.first + chunk.count)[live]
    return share[chunk.requests[live]].tolist()
