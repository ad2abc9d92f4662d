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
from stepalign_jax.parallel.mesh import whole_batch
from stepalign_jax.sampling import layout
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
    ):
        """Makes an engine for any weights of these sizes.

        Args:
          sizes: of the network.
          compute_dtype: of the computation and of cached keys and values.
          lora: size of the adapter, where the variables have one.
          stop_ids: token ids that end every completion.
          pad_id: what stands behind a completion in `Rollouts.tokens`.
        """
        self._model = decode_model(sizes, compute_dtype, lora)
        self._stop_ids = tuple(int(token) for token in stop_ids)
        self._pad_id = int(pad_id)

    def prepare(self, variables: layout.Variables) -> layout.Variables:
        """The weights as decoding reads them fastest, for calls that share them.

        The layers are unrolled, since decoding reads separate arrays faster than slices of
        a stacked one. This takes extra memory: one copy of the layers in the compute dtype,
        and of embedding and head if that is not their dtype. On a CPU large matrices lie in
        blocks of rows (`row_blocks`); there a tied head takes a copy of the embedding.
        Weights that are in this layout already stay as they are.
        """
        if layout.is_decode_layout(variables):
            return variables
        return layout.decode_layout(
            variables,
            num_layers=self._model.config.num_layers,
            dtype=self._model.dtype,
            num_blocks=layout.num_blocks(),
        )

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
        variables = self.prepare(variables)
        prompts = [tuple(request.prompt) for request in requests]
        shapes = prompt_layout(prompts)
        num_sessions = min(layout.num_sessions(variables), batch_size)
        shares = [share for share in deal(prompts, num_sessions) if share]
        num_slots = -(-batch_size // num_sessions)
        num_done, lock = [0] * len(shares), threading.Lock()

        def serve(index: int) -> None:
            share = np.array(shares[index])
            session = self._session(variables, num_slots, shapes.max_length(num_columns))
            session.submit([requests[i] for i in share], shapes)
            while not session.over:
                _place(results, share, session.step(DECODE_STEPS))
                with lock:
                    num_done[index] = session.num_done
                    if progress is not None:
                        progress(sum(num_done))

        if num_sessions == 1:
            # In this thread, which knows the mesh: a new one would not.
            serve(0)
        else:
            with ThreadPoolExecutor(num_sessions) as pool:
                list(pool.map(serve, range(len(shares))))
        return _with_ends(results, requests, self._stop_ids)

    def _session(self, variables: layout.Variables, num_slots: int, max_length: int) -> Session:
        return Session(
            self._model,
            variables,
            num_slots=whole_batch(num_slots),
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


def _place(results: Rollouts, share: np.ndarray, chunk: DecodeChunk) -> None:
    """Copies a chunk's tokens to the rows of their requests, `share` by session's number."""
    steps = np.arange(chunk.tokens.shape[0])[:, None]
    step, slot = np.nonzero(steps < chunk.count)
    rows, columns = share[chunk.requests[slot]], chunk.first[slot] + step
    for name in ("tokens", "logprobs"):
        getattr(results, name)[rows, columns] = getattr(chunk, name)[step, slot]
    live = chunk.requests >= 0
    results.lengths[share[chunk.requests[live]]] = (chunk.first + chunk.count)[live]


def _with_ends(
    results: Rollouts, requests: Sequence[Request], stop_ids: tuple[int, ...]
) -> Rollouts:
    """`results` with `finished` filled in: a completion is whole if it ends in a stop."""
    lengths: Any = results.lengths
    ends = np.asarray(results.tokens)[np.arange(len(lengths)), lengths - 1].tolist()
    own = frozenset(stop_ids)
    stopped = [
        end in own or end in request.params.stop_ids
        for end, request in zip(ends, requests, strict=True)
    ]
    return results.replace(finished=np.array(stopped))  # pyright: ignore[reportAttributeAccessIssue]
