# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Turns a list of prompts of any length into batches of few shapes, and back into rows."""

import enum
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.types import Rollouts
from stepalign_jax.model.lora import LoraSpec
from stepalign_jax.model.qwen3 import Qwen3, unstack_layers
from stepalign_jax.sampling.decode import ADDRESS_FIELDS, generate, make_row_keys

_SMALLEST_BUCKET = 16


class Purpose(enum.IntEnum):
    """What a completion is for; keeps noise apart where addresses are equal."""

    SOLVER = 0
    CRITIC = 1
    EVALUATION = 2


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


def prompt_bucket(length: int) -> int:
    """The padded width for prompts up to `length`: 16, 24, 32, 48, 64, 96, 128, ...

    Two widths per doubling: at most half of a width is wasted on its longest prompt, and
    prompts up to 4,096 tokens need no more than 17 compilations.
    """
    bucket = _SMALLEST_BUCKET
    while bucket < length:
        # A power of two is followed by 1.5 times itself, and that by the next power.
        bucket = bucket * 3 // 2 if bucket & (bucket - 1) == 0 else bucket * 4 // 3
    return bucket


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
        """Args: see `Qwen3` and `generate`; `compute_dtype` is the cache's dtype too."""
        self._dtype = jnp.dtype(compute_dtype)
        self._model = Qwen3(model_config, self._dtype, lora=lora, scan_layers=False)
        self._stop_ids = tuple(int(token) for token in stop_ids)
        self._pad_id = int(pad_id)

    def sample(
        self,
        variables: dict[str, Any],
        prompts: Sequence[Sequence[int]],
        addresses: np.ndarray,
        *,
        seed: int,
        purpose: Purpose,
        settings: SamplingSettings,
        progress: Callable[[int], None] | None = None,
    ) -> Rollouts:
        """Completes each prompt.

        Every batch has exactly `settings.batch_size` rows (dummies fill the last one) and
        holds prompts of similar length, so a call compiles once per prompt bucket at most.
        The layers are unrolled once per call, since decoding reads separate arrays faster
        than slices of a stacked one. While the call lasts this takes extra memory: one
        copy of the layers in the compute dtype, and of embedding and head if that is not
        their dtype.

        Args:
          variables: {"params": ...} for the base, with "lora" beside it for the adapted
            model; both in the stacked form.
          prompts: N lists of token ids.
          addresses: [N, 4] uint32, columns as in `decode.ADDRESS_FIELDS`.
          seed: the run's seed, below 2**32.
          purpose: what the completions are for.
          settings: how to draw them.
          progress: called with the number of requests done so far, after each batch.

        Returns:
          Rollouts of NumPy arrays [N, max_new_tokens], in the order of `prompts`.

        Raises:
          UserError: a prompt is empty, or leaves less room than `max_new_tokens`.
          ValueError: `addresses` does not have one row of four per prompt.
        """
        addresses = np.asarray(addresses, np.uint32)
        if addresses.shape != (len(prompts), len(ADDRESS_FIELDS)):
            raise ValueError(f"addresses {addresses.shape} for {len(prompts)} prompts")
        self._check_lengths(prompts, settings.max_new_tokens)
        results = _empty(len(prompts), settings.max_new_tokens, self._pad_id)
        if not prompts:
            return results
        num_layers = self._model.config.num_layers
        unrolled = _decode_layout(variables, num_layers=num_layers, dtype=self._dtype)

        def dispatch(rows: np.ndarray) -> Rollouts:
            return self._dispatch(unrolled, prompts, addresses, rows, seed, purpose, settings)

        num_done = 0
        batches = _batches(prompts, settings.batch_size)
        for rows, batch in _one_ahead(batches, dispatch):
            _place(results, rows, batch)
            num_done += len(rows)
            if progress is not None:
                progress(num_done)
        return results

    def _check_lengths(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        limit = self._model.config.max_positions
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise UserError(f"Prompt {index} is empty: a prompt needs at least one token.")
            if len(prompt) + max_new_tokens > limit:
                raise UserError(
                    f"Prompt {index} has {len(prompt)} tokens, which with max_new_tokens = "
                    f"{max_new_tokens} exceeds the model's {limit} positions: lower one."
                )

    def _dispatch(
        self,
        unrolled: dict[str, Any],
        prompts: Sequence[Sequence[int]],
        addresses: np.ndarray,
        rows: np.ndarray,
        seed: int,
        purpose: Purpose,
        settings: SamplingSettings,
    ) -> Rollouts:
        """Starts one batch and returns before it is done."""
        chosen = [prompts[row] for row in rows]
        tokens, lengths = _pad(chosen, settings.batch_size, self._pad_id)
        padded = np.zeros((settings.batch_size, len(ADDRESS_FIELDS)), np.uint32)
        padded[: len(rows)] = addresses[rows]
        return generate(
            self._model,
            unrolled,
            tokens,
            lengths,
            make_row_keys(np.uint32(seed), np.uint32(purpose), padded),
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            stop_ids=self._stop_ids,
            pad_id=self._pad_id,
            cache_dtype=self._dtype,
        )


@functools.partial(jax.jit, static_argnames=("num_layers", "dtype"))
def _decode_layout(variables: dict[str, Any], *, num_layers: int, dtype: Any) -> dict[str, Any]:
    """Every collection unrolled, matrices in the compute dtype.

    The model rounds matrices to that dtype where it uses them, so rounding them here
    changes no bit, and each token reads fewer bytes. Norm scales stay as they are.
    """
    unrolled = {name: unstack_layers(tree, num_layers) for name, tree in variables.items()}
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, unrolled)


def _batches(prompts: Sequence[Sequence[int]], batch_size: int) -> list[np.ndarray]:
    """Request numbers of each batch, longest prompts first.

    Sorting makes neighbours share a bucket; the longest lead, so that a lack of memory
    shows at once. The sort is stable: samples of one problem stay together.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _one_ahead(
    batches: list[np.ndarray], dispatch: Callable[[np.ndarray], Rollouts]
) -> Iterator[tuple[np.ndarray, Rollouts]]:
    """Yields (rows, rollouts) per batch, having started the batch after it."""
    ahead = dispatch(batches[0])
    for index, rows in enumerate(batches):
        current = ahead
        if index + 1 < len(batches):
            ahead = dispatch(batches[index + 1])
        yield rows, current


def _pad(
    prompts: Sequence[Sequence[int]], batch_size: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded tokens [batch_size, bucket] and lengths; dummy rows have length 0."""
    width = prompt_bucket(max(len(prompt) for prompt in prompts))
    tokens = np.full((batch_size, width), pad_id, np.int32)
    lengths = np.zeros(batch_size, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)
    return tokens, lengths


def _empty(num_requests: int, max_new_tokens: int, pad_id: int) -> Rollouts:
    shape = (num_requests, max_new_tokens)
    return Rollouts(
        tokens=np.full(shape, pad_id, np.int32),
        logprobs=np.zeros(shape, np.float32),
        sampling_logprobs=np.zeros(shape, np.float32),
        lengths=np.zeros(num_requests, np.int32),
        finished=np.zeros(num_requests, bool),
    )


def _place(results: Rollouts, rows: np.ndarray, batch: Rollouts) -> None:
    """Waits for `batch` and copies its rows to where their requests stand, dropping dummies."""

    def copy(target: np.ndarray, source: np.ndarray) -> None:
        target[rows] = source[: len(rows)]

    jax.tree.map(copy, results, jax.device_get(batch))
