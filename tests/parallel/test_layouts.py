# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What eight devices send each other, read from compiled programs, and the numbers they get.

What is sent is asserted exactly: an exchange that is not named here fails.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from support.collectives import Collective, collectives, copied_shapes, in_loop
from support.layouts import (
    CACHED,
    CONFIG,
    FEW_HEADS,
    PREFILL,
    ROWS,
    SHAPES,
    SLOTS,
    SPEC,
    WIDTHS,
    abstract,
    compiled_sampling,
    compiled_step,
    make_requests,
    mesh_of,
    sampled,
    step_numbers,
    unequal_tokens,
)
from support.runs import output_on_devices

from stepalign_jax.parallel.mesh import MESH_AXES, num_pieces, param_shardings
from stepalign_jax.sampling.draw import NUM_CANDIDATES
from stepalign_jax.sampling.layout import batch_shards, rules_of
from stepalign_jax.sampling.session import DECODE_STEPS

WIDTH, RANK, VOCABULARY = CONFIG.hidden_size, SPEC.rank, CONFIG.vocab_size
SMALL = 16  # numbers; metrics and one per token of a tile


def abstract_mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), MESH_AXES)


@pytest.mark.parametrize(
    ("shape", "config", "rows", "heads", "width"),
    [
        ((1, 8, 1), CONFIG, "data", ("tensor", "fsdp"), None),
        ((2, 2, 2), CONFIG, "data", ("tensor", "fsdp"), None),
        ((8, 1, 1), CONFIG, "data", ("tensor", "fsdp"), None),
        ((1, 16, 1), CONFIG, ("data", "fsdp"), "tensor", None),  # of 8 key heads
        ((1, 8, 1), FEW_HEADS, ("data", "fsdp"), "tensor", None),
        ((1, 1, 1), CONFIG, ("data", "fsdp"), "tensor", "fsdp"),  # one device: as training
    ],
)
def test_sampling_slices_weights_where_all_sizes_divide(shape, config, rows, heads, width):
    rules = dict(rules_of(config, abstract_mesh(*shape)))
    assert (rules["batch"], rules["kv_heads"], rules["embed"]) == (rows, heads, width)


def within(found: Iterable[Collective], **allowed: Iterable[tuple[int, ...]]) -> None:
    """Asserts that all arrays that are sent have one of the shapes of their kind."""
    for one in found:
        shapes = set(allowed.get(one.kind.replace("-", "_"), ()))
        assert set(one.shapes) <= shapes, (one.kind, one.shapes, one.path, sorted(shapes))


def check_sampling(shape: tuple[int, int, int], config: Any) -> None:
    """Asserts what the programs of sampling send, copy and return on a mesh."""
    mesh = mesh_of(shape)
    compiled = compiled_sampling(config, mesh)
    texts = {name: program.as_text() for name, program in compiled.items()}
    found = {name: collectives(text) for name, text in texts.items()}
    shards = batch_shards(config, mesh)
    cut = num_pieces(mesh, dict(rules_of(config, mesh))["heads"])
    cut_rows, is_cut = shards > 1, cut > 1
    heads, size = config.num_kv_heads // cut, config.head_dim

    # Weights move once, into their layout: sliced ones are exchanged, never whole.
    adapters = [(WIDTH, RANK), (RANK, WIDTH)]
    whole = [*weights(mesh, config), (VOCABULARY // shape[2], WIDTH)] if cut == shape[2] else []
    exchanged = (one for one in found["prepare"] if one.kind != "all-to-all" or cut == shape[2])
    within(exchanged, all_gather=[*adapters, *whole])
    # A prefill adds up what each device has of a layer's results.
    for name in ("prefill", "prefill behind a prefix"):
        within(found[name], all_reduce=[(2, PREFILL, WIDTH), (2, PREFILL, RANK)] * is_cut)
        assert bool(found[name]) == is_cut
    # Rows go from the shard that computed them to the one that decodes them, one by one.
    row = [(1, heads, size, PREFILL), (1, heads, PREFILL, size)]
    within(found["copy_rows"], all_reduce=row * cut_rows)
    assert found["resize"] == []

    turn, own = in_loop(texts["decode"]), SLOTS // shards
    model = [one for one in turn if "/Qwen3/" in one.path]
    within(model, all_reduce=[(own, 1, WIDTH), (own, 1, RANK)])
    sums = [shape for one in model for shape in one.shapes if shape[-1] == WIDTH]
    assert len(sums) == (2 * config.num_layers + 1) * is_cut  # and one of the embedding
    # Candidates of top-k, values and ids; the whole vocabulary where k exceeds every number.
    draw = [one for one in turn if one not in model]
    numbers = [n for n in NUM_CANDIDATES if n < VOCABULARY] + [VOCABULARY]
    chosen = [(own, cut * min(n, VOCABULARY // cut)) for n in numbers] * 2
    gathered = [s for one in draw if one.kind == "all-gather" for s in one.shapes]
    assert sorted(gathered) == sorted(chosen * is_cut), gathered
    summed = [(own,), (own, 1), (own, 3), ()]  # three masses of a nucleus at a time
    within((one for one in draw if one.kind != "all-gather"), all_reduce=summed)
    # What every host reads.
    rest = [one for one in found["decode"] if one not in turn and one.elements > 1]
    within(rest, all_gather=[(DECODE_STEPS, SLOTS), (SLOTS,)] * cut_rows)

    # No cache is replicated, and nothing of its size is copied.
    key, value = ((own, heads, *shape) for shape in ((size, CACHED), (CACHED, size)))
    caches = {
        "decode": compiled["decode"].output_shardings[0],
        "copy_rows": compiled["copy_rows"].output_shardings,
    }
    for name, cache in caches.items():
        for layer in cache:
            assert layer.k.shard_shape((SLOTS, config.num_kv_heads, size, CACHED)) == key
            assert layer.v.shard_shape((SLOTS, config.num_kv_heads, CACHED, size)) == value
        assert not {key, value} & copied_shapes(texts[name]), name


def check_step(shape: tuple[int, int, int], lora: Any) -> None:
    """Asserts what the teacher's scoring and the update send on a mesh."""
    data, fsdp, tensor = shape
    mesh = mesh_of(shape)
    found = {
        name: collectives(program.as_text())
        for name, program in compiled_step(mesh, lora).items()
    }
    layers, head = weights(mesh), (VOCABULARY // tensor, WIDTH)
    slices = weights(mesh, sliced=True)
    for name, one in ((name, one) for name, every in found.items() for one in every):
        length = WIDTHS[name]
        own = (ROWS // (data * fsdp), length)
        activations = {(*own, WIDTH), (*own, RANK), (ROWS // data, length, WIDTH // fsdp)}
        sent, sizes = set(one.shapes), {math.prod(shape) for shape in one.shapes}
        match one.kind:
            case "all-gather" if one.path == "jit(whole)/sharding_constraint":
                # What every host reads: scores of the packed tokens.
                assert name == "update" and max(sizes) <= 8 * SMALL, one
            case "all-gather":  # layers of fsdp; token ids, for the embedding
                assert fsdp > 1, one
                ids = sizes == {ROWS // data * length}
                assert sent <= set(layers) or ids or (name == "update" and sent == {head}), one
            case "all-to-all":  # looked up rows, and their gradient
                assert fsdp > 1 and sizes == {math.prod(own) * WIDTH // fsdp}, one
            case "all-reduce":
                gradients = {*layers, *slices, head, (head[0], WIDTH // fsdp)}
                tile = {(8, WIDTH)}
                named = activations | tile | (gradients if name == "update" else set())
                assert {s for s in sent if math.prod(s) > SMALL} <= named, one
            case "reduce-scatter":  # the head's gradient
                assert name == "update" and sent == {(head[0], WIDTH // fsdp)}, one
            case _:  # slices of an adapter's factors, or parts of them, change places
                assert all(RANK in shape for shape in sent), one
                assert max(sizes) <= WIDTH // fsdp * RANK, one
    gathered = sum(
        one.shapes.count(head) for one in found["update"] if one.kind == "all-gather"
    )
    assert gathered == (fsdp > 1) * (2 if lora is None else 1)  # once for each head
    if shape == (8, 1, 1):
        assert found["score"] == []


def weights(mesh: Any, config: Any = CONFIG, *, sliced: bool = False) -> list[tuple[int, ...]]:
    """Shapes on a device of all weights but the embedding, fsdp's slices joined or not."""
    data, _, tensor = mesh.devices.shape
    tree = abstract(config)
    joined = mesh_of((data, 1, tensor)) if not sliced else mesh
    places = jax.tree.leaves(param_shardings(joined, tree))
    shapes = [leaf.shape for leaf in jax.tree.leaves(tree)]
    local = [place.shard_shape(shape) for place, shape in zip(places, shapes, strict=True)]
    return [shape[1:] for shape in local if len(shape) > 1 and shape[0] == CONFIG.num_layers]


def check_numbers(shapes: Iterable[tuple[int, int, int]]) -> str:
    """Compares losses, gradients and samples with one device's; returns the largest errors."""
    one = mesh_of((1, 1, 1))
    requests = make_requests(48, 50)
    steps = {lora: step_numbers(one, lora) for lora in (SPEC, None)}
    tokens = {config: sampled(one, requests, config) for config in (CONFIG, FEW_HEADS)}
    lines = []
    for shape in shapes:
        mesh, worst, unequal, compared = mesh_of(shape), 0.0, 0, 0
        for lora, expected in steps.items():
            errors = jax.tree.map(relative_error, step_numbers(mesh, lora), expected)
            worst = max(worst, *jax.tree.leaves(errors))
        for config, expected in tokens.items():
            if config.num_kv_heads % shape[2] == 0:
                differ, number = unequal_tokens(sampled(mesh, requests, config), expected)
                unequal, compared = unequal + differ, compared + number
        lines.append(f"{shape}: error {worst:.1e}, {unequal} of {compared} tokens differ")
        assert worst < 1e-5 and compared >= 2_000 and unequal <= compared / 1_000, lines[-1]
    return "\n".join(lines)


def relative_error(found: Any, expected: Any) -> float:
    """The largest error over the largest entry."""
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def run(code: str, timeout_secs: float = 280) -> str:
    code = f"from parallel.test_layouts import *\n{code}\nprint('done')"
    printed = output_on_devices(code, num_devices=8, timeout_secs=timeout_secs)
    print(printed)
    return printed.splitlines()[-1]


@pytest.mark.long
def test_fsdp_alone_samples_and_trains_as_intended():
    code = "check_sampling((1, 8, 1), CONFIG); check_step((1, 8, 1), SPEC)"
    assert run(code) == "done"


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_program_sends_what_is_intended(shape):
    few = f"check_sampling({shape}, FEW_HEADS)" if shape[2] <= 2 else ""
    steps = f"check_step({shape}, SPEC); check_step({shape}, None)"
    assert run(f"check_sampling({shape}, CONFIG); {steps}\n{few}", 900) == "done"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_shape_gives_the_numbers_of_one_device():
    assert run("print(check_numbers(SHAPES))", 3600) == "done"
