# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The tiled divergence under pmap and shard_map on 8 devices, beside one device and float64.

Each way of calling it takes a step and its inputs, and returns what one device would: the loss,
scores of [N], and the gradients of hidden states [N, D] and head [V, D].
"""

import functools
import importlib
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.sharding import Mesh
from support import float64
from support.runs import ROOT
from support.tiled import SETTINGS, tiled

from stepalign_jax.config.schema import ParallelConfig
from stepalign_jax.objectives.tiled_divergence import tiled_divergence, tiled_scores
from stepalign_jax.objectives.tiled_logprobs import tiled_logprobs
from stepalign_jax.objectives.vocabulary import Cut
from stepalign_jax.parallel.mesh import make_mesh

N, V, D = 24, 16, 8
ROWS = ("solver_hidden", "teacher_hidden", "tokens", "token_weights")
HEADS = ("solver_head", "teacher_head")
TRAINS = ("solver_hidden", "solver_head")
Step = Callable[..., tuple[Any, dict[str, Any]]]


def divergence_loss(name: str, way: dict, shared: bool, where: Any, inputs: dict) -> Any:
    inputs = inputs | ({"teacher_head": None} if shared else {})
    return tiled(inputs, name, mesh=where, **way)


def logprobs_loss(where: Any, inputs: dict) -> Any:
    """A sum over the tokens at hand alone: log-probabilities are numbers per token."""
    found, at_one = tiled_logprobs(
        inputs["solver_hidden"], inputs["solver_head"], inputs["tokens"],
        temperature=1.3, token_tile=3, mesh=where,
    )  # fmt: skip
    return jnp.sum(inputs["token_weights"] * found**2), (found, at_one)


def step(loss: Callable[..., Any], where: Any, inputs: dict) -> tuple[Any, dict[str, Any]]:
    """((loss, scores), gradients), of the loss that `where` has the caller see."""

    def of(trained: dict) -> Any:
        return loss(where, inputs | trained)

    trained = {key: inputs[key] for key in TRAINS}
    return jax.value_and_grad(of, has_aux=True)(trained)


def in_pmap(loss: Any, inputs: dict, *, axis: str, vocab: bool, sums_here: bool) -> Any:
    """By one axis, of tokens or of the vocabulary; `sums_here`: the caller adds up."""
    cut, count = HEADS if vocab else ROWS, len(jax.devices())
    where = None if sums_here else Cut(vocab_axis=axis) if vocab else Cut(token_axes=(axis,))

    def on_device(inputs: dict) -> Any:
        (total, scores), gradients = step(loss, where, inputs)
        if sums_here:
            total, head = jax.lax.psum((total, gradients["solver_head"]), axis)
            gradients |= {"solver_head": head}
        return (total, scores), gradients

    parts = {
        key: array.reshape(count, -1, *array.shape[1:]) if key in cut else array
        for key, array in inputs.items()
    }
    axes = ({key: 0 if key in cut else None for key in inputs},)
    (total, scores), gradients = jax.pmap(on_device, axis_name=axis, in_axes=axes)(parts)
    np.testing.assert_array_equal(total, np.broadcast_to(total[0], total.shape))
    whole = lambda array: jnp.reshape(array, (-1, *array.shape[2:]))  # noqa: E731
    join = lambda key, array: whole(array) if key in cut else array[0]  # noqa: E731
    scores = jax.tree.map(lambda array: join("tokens", array), scores)
    return (total[0], scores), {key: join(key, array) for key, array in gradients.items()}


def in_shard_map(
    loss: Any,
    inputs: dict,
    *,
    mesh: Mesh,
    tokens: tuple[str, ...],
    vocab: str | None,
    check_vma: bool,
    outside: bool = False,
) -> Any:
    """By axes of any name; `outside`: the map is differentiated, and not what is in it."""
    where = Cut(token_axes=tokens, vocab_axis=vocab)
    by_token, by_entry = P(tokens), P(vocab)
    specs = {key: by_token if key in ROWS else by_entry for key in inputs}
    mapped = functools.partial(jax.shard_map, mesh=mesh, check_vma=check_vma)
    if outside:
        whole = mapped(
            functools.partial(loss, where), in_specs=(specs,), out_specs=(P(), by_token)
        )
        run = functools.partial(step, lambda _, inputs: whole(inputs), None)
    else:
        out = ((P(), by_token), {key: specs[key] for key in TRAINS})
        run = mapped(functools.partial(step, loss, where), in_specs=(specs,), out_specs=out)
    return jax.jit(run)(inputs)


def in_jit(loss: Any, inputs: dict, *, where: Any) -> Any:
    return jax.jit(functools.partial(step, loss, where))(inputs)


def in_outer_shard_map(loss: Any, inputs: dict, *, mesh: Mesh, outer: tuple[str, ...]) -> Any:
    """The project's mesh, of whose axes the caller's shard_map has taken some."""

    def on_device(inputs: dict) -> Any:
        (total, scores), gradients = step(loss, mesh, inputs)
        return (jax.lax.psum(total, outer), scores), gradients

    specs = {key: P(outer) if key in ROWS else P() for key in inputs}
    out = ((P(), P(outer)), {key: specs[key] for key in TRAINS})
    mapped = jax.shard_map(
        on_device, mesh=mesh, axis_names=set(outer), in_specs=(specs,), out_specs=out
    )
    return jax.jit(mapped)(inputs)


def largest_error(found: Any, expected: Any) -> float:
    errors = jax.tree.map(float64.relative_error, found, jax.device_get(expected))
    return max(jax.tree.leaves(errors))


def meshes() -> tuple[Mesh, Mesh]:
    """Of eight devices: the project's, and one whose axes have other names."""
    foreign = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("rows", "words"))
    return make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2)), foreign


def all_ways() -> dict[str, Callable[[Any, dict], Any]]:
    """(loss, inputs) -> what `in_jit` returns, by every way of calling it."""
    ours, foreign = meshes()
    ways: dict[str, Callable[[Any, dict], Any]] = {
        "pmap over tokens": functools.partial(in_pmap, axis="q", vocab=False, sums_here=False),
        "pmap, caller sums": functools.partial(in_pmap, axis="q", vocab=False, sums_here=True),
        "pmap over words": functools.partial(in_pmap, axis="q", vocab=True, sums_here=False),
        "jit, other names": functools.partial(
            in_jit, where=Cut(("rows",), "words", mesh=foreign)
        ),
        "jit": functools.partial(in_jit, where=ours),
    }
    cuts = ((("rows", "words"), None), (("rows",), "words"), ((), "words"))
    for tokens, vocab in cuts:
        for check_vma, outside in ((True, False), (True, True), (False, False)):
            name = f"shard_map {tokens} {vocab} check_vma={check_vma} outside={outside}"
            ways[name] = functools.partial(
                in_shard_map, mesh=foreign, tokens=tokens, vocab=vocab,
                check_vma=check_vma, outside=outside,
            )  # fmt: skip
    for outer in (("data",), ("fsdp",), ("data", "fsdp"), ("data", "fsdp", "tensor")):
        ways[f"in a shard_map over {outer}"] = functools.partial(
            in_outer_shard_map, mesh=ours, outer=outer
        )
    return ways


def drawn() -> dict[str, jax.Array]:
    return {key: jnp.asarray(array) for key, array in float64.draw_inputs(N, V, D).items()}


def check_all_ways() -> None:
    """The plain loss, by all ways, beside one device's and float64's."""
    loss, inputs = functools.partial(divergence_loss, "forward_kl", {}, False), drawn()
    plain = jax.device_get(inputs)
    one = in_jit(loss, inputs, where=None)
    logs = float64.both_logprobs(plain, SETTINGS["loss_temperature"])
    gradients = {
        key: float64.central_differences(
            lambda x, key=key: float64.weighted_sum(
                "forward_kl", plain | {key: x}, logs[0], SETTINGS
            ),
            plain[key],
        )
        for key in TRAINS
    }
    values = float64.values("forward_kl", *logs, plain["tokens"], logs[0], **SETTINGS)
    for name, way in all_ways().items():
        found = way(loss, inputs)
        assert largest_error(found, one) < 1e-5, name
        (total, scores), by_name = found
        assert abs(total - plain["token_weights"] @ values) < 1e-4, name
        np.testing.assert_allclose(scores.loss, values, rtol=2e-5, atol=2e-6)
        assert largest_error(by_name, gradients) < 1e-5, name
    print("equal by", len(all_ways()), "ways on", len(jax.devices()), "devices")


def check_other_losses() -> None:
    """Other divergences, one shared head, and log-probabilities; by the hardest ways."""
    inputs, by_word = drawn(), functools.partial(in_pmap, axis="q", vocab=True, sums_here=False)
    both = functools.partial(
        in_shard_map, mesh=meshes()[1], tokens=("rows",), vocab="words", check_vma=True
    )
    words = functools.partial(both, tokens=(), outside=True)
    losses = [functools.partial(divergence_loss, "forward_kl", {}, True)]
    others = (("jsd", {"top_k": 5, "element_clip": 0.1}), ("sampled_token", {}))
    losses += [functools.partial(divergence_loss, *other, False) for other in others]
    for loss in losses:
        one = in_jit(loss, inputs, where=None)
        for way in (by_word, both):
            assert largest_error(way(loss, inputs), one) < 1e-5, (loss, way)
    one = in_jit(logprobs_loss, inputs, where=None)
    for way in (
        by_word,
        words,
        functools.partial(in_pmap, axis="q", vocab=False, sums_here=True),
    ):
        assert largest_error(way(logprobs_loss, inputs), one) < 1e-5, way
    print("equal for", len(losses) + 1, "losses")


def check_forward_only() -> None:
    """All scores by name, and what a caller is told who cuts too little or too much."""
    _, foreign = meshes()
    inputs = {key: array for key, array in drawn().items() if key != "token_weights"}
    specs = {key: P("rows") if key in ROWS else P("words") for key in inputs}

    def scores(where: Any, inputs: dict) -> Any:
        kind = float64.make_divergence("jsd", top_k=V - 1)  # below V, not below a slice of it
        return tiled_scores(**inputs, divergence=kind, num_top=3, mesh=where)

    def mapped(where: Any, specs: dict) -> Any:
        run = functools.partial(scores, where)
        found = jax.shard_map(run, mesh=foreign, in_specs=(specs,), out_specs=P("rows"))
        return jax.jit(found)(inputs)

    cut = Cut(("rows",), "words")
    assert largest_error(mapped(cut, specs), scores(None, inputs)) < 1e-5
    loss, whole = functools.partial(divergence_loss, "forward_kl", {}, False), drawn()
    for tokens, vocab in ((("rows",), "rows"), (("rows", "words"), "words")):
        try:
            in_shard_map(loss, whole, mesh=foreign, tokens=tokens, vocab=vocab, check_vma=True)
        except ValueError as error:
            assert "must be the same along" in str(error), error
        else:
            raise AssertionError("an axis that cuts both was taken")
    print("scores are equal")


def check_the_page() -> None:
    """The files of docs/divergence.md, as they stand there, beside one device."""
    page = (ROOT / "docs" / "divergence.md").read_text()
    files = dict(re.findall(r"```python file=(\S+)\n(.*?)```", page, re.DOTALL))
    lines = [[line for line in text.splitlines() if line] for text in files.values()]
    assert max(map(len, lines)) <= 20
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text)
        sys.path.insert(0, folder)
        pmapped, mapped = map(importlib.import_module, ("in_pmap", "in_shard_map"))
    inputs = drawn()
    arrays = [inputs[key] for key in (*ROWS[:2], HEADS[0], *ROWS[2:])]

    def alone(hidden: jax.Array, head: jax.Array) -> Any:
        rows = (hidden, inputs["teacher_hidden"], head, None, inputs["tokens"])
        options = {"token_weights": inputs["token_weights"], "divergence": pmapped.FORWARD_KL}
        return tiled_divergence(*rows, **options, mesh=None)

    taken = jax.value_and_grad(alone, (0, 1), has_aux=True)(arrays[0], arrays[2])
    (total, scores), (hidden, head) = taken
    one = (total, scores, hidden, head)
    assert largest_error(mapped.on(meshes()[1])(*arrays), one) < 1e-5
    by_device = lambda array: jnp.reshape(array, (8, -1, *array.shape[1:]))  # noqa: E731
    parts = [array if array is inputs["solver_head"] else by_device(array) for array in arrays]
    total, scores, hidden, head = pmapped.parallel(*parts)
    scores, hidden = jax.tree.map(
        lambda array: array.reshape(N, *array.shape[2:]), (scores, hidden)
    )
    for device in range(8):
        assert largest_error((total[device], scores, hidden, head[device]), one) < 1e-5
    print("docs/divergence.md is right")
