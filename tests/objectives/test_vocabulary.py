# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokens, head and vocabulary cut over 8 devices: one device's numbers, no gathered logits."""

import pytest
from support.runs import output_on_devices

EIGHT_DEVICES = """
    import functools
    import support.float64 as float64
    import jax, jax.numpy as jnp, numpy as np
    from stepalign_jax.config.schema import ParallelConfig
    from support.tiled import SETTINGS, equations, tiled
    from stepalign_jax.objectives.tiled_divergence import tiled_entropies, tiled_scores
    from stepalign_jax.objectives.tiled_logprobs import tiled_logprobs
    from stepalign_jax.parallel.mesh import active_mesh, make_mesh, use_mesh

    N, V, D = 21, 24, 8  # 21 tokens are padded to fill 4 devices
    inputs = float64.draw_inputs(N, V, D)
    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))

    def divergence_step(name, way, shared, mesh, arrays):
        def loss(trains):
            rest = {**inputs, **trains} | ({"teacher_head": None} if shared else {})
            return tiled(rest, name, mesh=mesh, **way)
        return jax.value_and_grad(loss, has_aux=True)(arrays)

    def logprobs_step(mesh, arrays):
        def loss(trains):
            return jnp.sum(inputs["token_weights"] * tiled_logprobs(
                trains["solver_hidden"], trains["solver_head"], inputs["tokens"],
                temperature=1.3, token_tile=3, mesh=mesh,
            )[0] ** 2)
        return jax.value_and_grad(loss)(arrays)

    def entropies_step(mesh, arrays):
        def loss(trains):
            hidden, head = trains["solver_hidden"], trains["solver_head"]
            entropies = tiled_entropies(hidden, head, token_tile=3, mesh=mesh)
            return jnp.sum(entropies * hidden.sum(-1)) + head.sum()
        return jax.value_and_grad(loss)(arrays)

    def likeliest(mesh, arrays):
        # Equal rows of the head tie, within a device's slice and between two: lower ids first.
        head = arrays["solver_head"]
        head = head.at[jnp.array([3, 11, 19])].set(2 * head[7])
        found = tiled_scores(arrays["solver_hidden"], inputs["teacher_hidden"], head, None,
            inputs["tokens"], divergence=float64.make_divergence("forward_kl", token_tile=3),
            num_top=14, mesh=mesh)
        return found.solver_top_ids, found.solver_top_logprobs, found.teacher_top_ids

    def same(step):
        arrays = {key: inputs[key] for key in ("solver_hidden", "solver_head")}
        one = jax.jit(functools.partial(step, None))(arrays)
        with use_mesh(mesh):
            assert active_mesh().shape == mesh.shape
            many = jax.jit(lambda arrays: step(active_mesh(), arrays))(arrays)
        errors = jax.tree.map(float64.relative_error, many, jax.device_get(one))
        assert max(jax.tree.leaves(errors)) < 1e-5, errors
        return many

    for name, way in [*((name, {}) for name in ("reverse_kl", "jsd", "sampled_token")),
                      ("forward_kl", {"element_clip": 0.1, "top_k": 15})]:
        same(functools.partial(divergence_step, name, way, False))
    (_, scores), gradients = same(functools.partial(divergence_step, "forward_kl", {}, True))
    assert gradients["solver_head"].sharding.spec == jax.P("tensor", "fsdp")
    same(logprobs_step)
    ids, top, _ = same(likeliest)  # more than a device's slice has
    assert (np.diff(top) <= 0).all() and all(len(set(row)) == 14 for row in np.asarray(ids))
    tied = [row[np.isin(row, (3, 11, 19))] for row in np.asarray(ids)]
    assert all((np.diff(row) > 0).all() for row in tied) and max(map(len, tied)) == 3
    _, gradients = same(entropies_step)  # constants inside what is differentiated
    assert (gradients["solver_head"] == 1).all()
    assert active_mesh() is None

    # No device sees more than its tile of tokens by its slice of the vocabulary.
    found = jax.make_jaxpr(functools.partial(divergence_step, "forward_kl", {}, False, mesh))(
        {key: inputs[key] for key in ("solver_hidden", "solver_head")})
    outs = [out.aval for equation in equations(found.jaxpr) for out in equation.outvars]
    shapes = {getattr(out, "shape", ()) for out in outs}
    assert (3, 12) in shapes and not {s for s in shapes if s[1:] == (24,)}, shapes

    # And it is float64's.
    pair = float64.both_logprobs(inputs, SETTINGS["loss_temperature"])
    (_, scores), gradients = same(functools.partial(divergence_step, "forward_kl", {}, False))
    frozen = pair[0]
    for key in ("solver_hidden", "solver_head"):
        expected = float64.central_differences(lambda x: float64.weighted_sum(
            "forward_kl", {**inputs, key: x}, frozen, SETTINGS), inputs[key])
        assert float64.relative_error(gradients[key], expected) < 1e-5, key
    print("equal on", len(jax.devices()), "devices")
"""


@pytest.mark.long
def test_eight_devices_give_the_numbers_of_one():
    assert output_on_devices(EIGHT_DEVICES, num_devices=8) == "equal on 8 devices"
