# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Serves a list of requests from a fixed number of slots: continuous batching."""

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Rollouts
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.model.products import block_large
from stepalign_jax.model.qwen3 import Qwen3, unstack_layers
from stepalign_jax.sampling.draw import ADDRESS_FIELDS, Filter
from stepalign_jax.sampling.request import Purpose, Request
from stepalign_jax.sampling.scheduler import deal, prompt_bucket
from stepalign_jax.sampling.session import TURNS, Served, Session

__all__ = ["Engine", "Prepared", "Purpose", "SamplingSettings", "prompt_bucket"]


_MOST_LANES = 4  # the host's work for each is serial


class SamplingSettings(Protocol):
    """How to draw; `SamplingConfig` and `EvaluationConfig` both are this."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def batch_size(self) -> int: ...


class Prepared(NamedTuple):
    """Weights in the layout of decoding, from `Engine.prepare`."""

    variables: dict[str, Any]


class Engine:
    """Samples completions for lists of requests with one model.

    It holds no weights and no random state: a request's tokens depend on the weights, its
    prompt, its address, `seed` and `purpose`, not on what is sampled beside it.
    """

    def __init__(
        self,
        model_config: Any,
        compute_dtype: Any,
        lora: LoraSpec | None,
        stop_ids: Sequence[int],
        pad_id: int,
    ):
        """Args: see `Qwen3` and `decode_chunk`; `compute_dtype` is the cache's dtype too."""
        self._dtype = jnp.dtype(compute_dtype)
        self._model = Qwen3(model_config, self._dtype, lora=lora, scan_layers=False)
        self._stop_ids = tuple(int(token) for token in stop_ids)
        self._pad_id = int(pad_id)

    def prepare(self, variables: dict[str, Any]) -> Prepared:
        """The weights as decoding reads them fastest, for calls that share them.

        The layers are unrolled, since decoding reads separate arrays faster than slices of
        a stacked one. This takes extra memory: one copy of the layers in the compute dtype,
        and of embedding and head if that is not their dtype. On a CPU large matrices lie in
        blocks of rows (`row_blocks`); there a tied head takes a copy of the embedding.
        """
        return Prepared(
            _decode_layout(
                variables,
                num_layers=self._model.config.num_layers,
                dtype=self._dtype,
                num_blocks=_num_blocks(),
            )
        )

    def sample(
        self,
        variables: dict[str, Any] | Prepared,
        requests: Sequence[Request],
        *,
        batch_size: int,
        progress: Callable[[int], None] | None = None,
    ) -> Rollouts:
        if not requests:
            return _empty(0, 0, 0)
        p = requests[0].params

        class S:
            temperature, top_k, top_p = p.temperature, p.top_k, p.top_p
            max_new_tokens = p.max_new_tokens

        S.batch_size = batch_size
        return self.sample_old(
            variables,
            [list(r.prompt) for r in requests],
            np.array([r.address[2:] for r in requests], np.uint32),
            seed=requests[0].address.seed,
            purpose=requests[0].address.purpose,
            settings=S,
            progress=progress,
        )

    def sample_old(
        self,
        variables: dict[str, Any] | Prepared,
        prompts: Sequence[Sequence[int]],
        addresses: np.ndarray,
        *,
        seed: int,
        purpose: Purpose,
        settings: SamplingSettings,
        progress: Callable[[int], None] | None = None,
    ) -> Rollouts:
        """Completes each prompt.

        There are always `settings.batch_size` slots, whatever the number of requests, so
        that a call compiles nothing that an earlier one with prompts of these widths did.
        On a CPU the sessions of a small model (`_num_lanes`) share them.

        Args:
          variables: {"params": ...} for the base, with "lora" beside it for the adapted
            model; both in the stacked form, and then prepared for this call; or `Prepared`.
          prompts: N lists of token ids.
          addresses: [N, 4] uint32, columns as in `draw.ADDRESS_FIELDS`.
          seed: the run's seed, below 2**32.
          purpose: what the completions are for.
          settings: how to draw them; `batch_size` is the number of slots.
          progress: called with the number of requests done so far, whenever some are.

        Returns:
          Rollouts of NumPy arrays [N, max_new_tokens], in the order of `prompts`.

        Raises:
          UserError: a prompt is empty, or leaves less room than `max_new_tokens`.
          ValueError: `addresses` does not have one row of four per prompt.
        """
        addresses = self._checked(prompts, addresses, settings)
        results = _empty(len(prompts), settings.max_new_tokens, self._pad_id)
        if not prompts:
            return results  # and no copy of the weights for it
        prepared = self._prepared(variables)
        num_lanes = min(_num_lanes(prepared), settings.batch_size)
        lanes = [lane for lane in deal(prompts, num_lanes) if lane]
        num_slots = -(-settings.batch_size // num_lanes)
        num_done, lock = [0] * len(lanes), threading.Lock()

        def serve(lane: int) -> None:
            session = self._session(
                prepared, prompts, addresses, lanes[lane], seed, purpose, settings, num_slots
            )
            for served in session.run(itertools.repeat(TURNS)):
                _place(results, served)
                with lock:
                    num_done[lane] = served.num_done
                    if progress is not None:
                        progress(sum(num_done))

        if num_lanes == 1:
            # In this thread, which knows the mesh: a new one would not.
            for lane in range(len(lanes)):
                serve(lane)
        else:
            with ThreadPoolExecutor(num_lanes) as pool:
                list(pool.map(serve, range(len(lanes))))
        return _with_ends(results, self._stop_ids)

    def stream(
        self,
        variables: dict[str, Any] | Prepared,
        prompt: Sequence[int],
        address: Sequence[int],
        *,
        seed: int,
        purpose: Purpose,
        settings: SamplingSettings,
        turns: int,
    ) -> Iterator[list[int]]:
        """Yields the tokens of one completion: the first, then up to `turns` at a time.

        They are those that `sample` would give; arguments and refusals are as there.
        """
        addresses = self._checked([prompt], np.asarray([address]), settings)
        prepared = self._prepared(variables)
        session = self._session(
            prepared, [prompt], addresses, [0], seed, purpose, settings, settings.batch_size
        )
        for served in session.run(itertools.chain([1], itertools.repeat(turns))):
            slot = int(served.requests.argmax())
            yield served.chunk.tokens[: served.count[slot], slot].tolist()

    def _prepared(self, variables: dict[str, Any] | Prepared) -> Prepared:
        return variables if isinstance(variables, Prepared) else self.prepare(variables)

    def _session(
        self,
        prepared: Prepared,
        prompts: Sequence[Sequence[int]],
        addresses: np.ndarray,
        requests: Sequence[int],
        seed: int,
        purpose: Purpose,
        settings: SamplingSettings,
        num_slots: int,
    ) -> Session:
        return Session(
            self._model,
            prepared.variables,
            prompts,
            addresses,
            requests,
            seed=seed,
            purpose=purpose,
            num_slots=num_slots,
            max_new_tokens=settings.max_new_tokens,
            chosen_by=Filter(settings.temperature, settings.top_k, settings.top_p),
            stop_ids=self._stop_ids,
            dtype=self._dtype,
        )

    def _checked(
        self,
        prompts: Sequence[Sequence[int]],
        addresses: np.ndarray,
        settings: SamplingSettings,
    ) -> np.ndarray:
        """`addresses` as uint32; raises what `sample` says."""
        addresses = np.asarray(addresses, np.uint32)
        if addresses.shape != (len(prompts), len(ADDRESS_FIELDS)):
            raise ValueError(f"addresses {addresses.shape} for {len(prompts)} prompts")
        limit, room = self._model.config.max_positions, settings.max_new_tokens
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise UserError(f"Prompt {index} is empty: a prompt needs at least one token.")
            if len(prompt) + room > limit:
                raise UserError(
                    f"Prompt {index} has {len(prompt)} tokens, which with max_new_tokens = "
                    f"{room} exceeds the model's {limit} positions: lower one."
                )
        return addresses


@functools.partial(jax.jit, static_argnames=("num_layers", "dtype", "num_blocks"))
def _decode_layout(
    variables: dict[str, Any], *, num_layers: int, dtype: Any, num_blocks: int
) -> dict[str, Any]:
    """Every collection unrolled, matrices in the compute dtype; in blocks, if there are any.

    The model rounds matrices to that dtype where it uses them, so rounding them here
    changes no bit, and each token reads fewer bytes. Norm scales stay as they are.
    """
    layout = {name: unstack_layers(tree, num_layers) for name, tree in variables.items()}
    if num_blocks:
        layout["params"], layout["decode"] = block_large(layout["params"], num_blocks)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, layout)


def _num_blocks() -> int:
    """How many blocks large matrices are cut into: one per core of a single CPU device."""
    return _num_cores() if jax.default_backend() == "cpu" and jax.device_count() == 1 else 0


def _num_lanes(prepared: Prepared) -> int:
    """How many sessions share the requests of a call, each in a thread of its own.

    A model so small that none of its matrices is cut into blocks leaves all cores of a CPU but
    one idle most of the time, since XLA runs small operations on one: two sessions of half the
    slots took 0.6 of the time of one (docs/performance.md). Larger models read all of their
    weights every turn, which two sessions would do twice.
    """
    if prepared.variables.get("decode"):
        return 1
    return max(1, min(_num_blocks(), _MOST_LANES))


def _num_cores() -> int:
    own = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(own(0)) if own else os.cpu_count() or 1


def _empty(num_requests: int, max_new_tokens: int, pad_id: int) -> Rollouts:
    shape = (num_requests, max_new_tokens)
    return Rollouts(
        tokens=np.full(shape, pad_id, np.int32),
        logprobs=np.zeros(shape, np.float32),
        sampling_logprobs=np.zeros(shape, np.float32),
        lengths=np.zeros(num_requests, np.int32),
        finished=np.zeros(num_requests, bool),
    )


def _place(results: Rollouts, served: Served) -> None:
    """Copies a chunk's tokens to where their requests stand."""
    turns = np.arange(served.chunk.tokens.shape[0])[:, None]
    turn, slot = np.nonzero(turns < served.count)
    rows, columns = served.requests[slot], served.first[slot] + turn
    for name in ("tokens", "logprobs", "sampling_logprobs"):
        getattr(results, name)[rows, columns] = getattr(served.chunk, name)[turn, slot]
    live = served.requests >= 0
    ends = served.first + served.count
    results.lengths[served.requests[live]] = ends[live]


def _with_ends(results: Rollouts, stop_ids: tuple[int, ...]) -> Rollouts:
    """`results` with `finished` filled in: a completion is whole if it ends in a stop."""
    lengths: Any = results.lengths
    ends = np.asarray(results.tokens)[np.arange(len(lengths)), np.maximum(lengths - 1, 0)]
    return results.replace(finished=np.isin(ends, stop_ids) & (lengths > 0))  # pyright: ignore[reportAttributeAccessIssue]
