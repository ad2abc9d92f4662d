# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Programs made from shapes alone are those that a call compiles."""

from typing import Any

import jax
import pytest
from support.models import CONFIG
from support.runs import output_on_devices

from stepalign_jax.model.lora import LoraSpec, init_lora
from stepalign_jax.model.qwen3 import init_params
from stepalign_jax.sampling import decode, prefill, programs, session
from stepalign_jax.sampling.engine import Engine
from stepalign_jax.sampling.request import Address, Request, SamplingParams
from stepalign_jax.sampling.scheduler import cache_widths

SPEC = LoraSpec(rank=4, alpha=8.0, targets=("q_proj", "down_proj"))
PLAIN = SamplingParams(1.0, 0, 1.0, max_new_tokens=300, stop_ids=())
# Two prompts that share 128 tokens: with 300 more each outgrows the first cache.
REQUESTS = [Request([*[5] * 131, last], Address(0, 0, 0, 0, last, 0), PLAIN) for last in (6, 7)]


class Recorder:
    """Stands in for a jitted function, and keeps its lowered text for each call."""

    def __init__(self, function: Any):
        self.function, self.texts = function, set[str]()

    def __call__(self, *arguments: Any) -> Any:
        self.texts.add(self.function.lower(*arguments).as_text())
        return self.function(*arguments)


def sample_recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Samples REQUESTS, and returns the text of every program that ran, by name."""
    places = {
        "prefill": prefill, "copy_rows": prefill,
        "resize_layer": decode, "decode_chunk": session,
    }  # fmt: skip
    recorders = {name: Recorder(getattr(decode, name)) for name in places}
    for name, place in places.items():
        monkeypatch.setattr(place, name, recorders[name])
    monkeypatch.setattr("stepalign_jax.sampling.layout.num_sessions", lambda _variables: 1)
    variables = {
        "params": init_params(CONFIG, jax.random.key(0)),
        "lora": init_lora(CONFIG, SPEC, jax.random.key(1)),
    }
    engine = Engine(CONFIG, "float32", SPEC, stop_ids=(), pad_id=0)
    engine.sample(variables, REQUESTS, batch_size=4)
    return {name: recorder.texts for name, recorder in recorders.items()}


def abstract_texts(mesh: Any) -> dict[str, set[str]]:
    """The same from sizes alone."""
    _, narrow, wide = cache_widths(132, PLAIN.max_new_tokens, prefix=128)  # 128 is too narrow
    model = programs.decode_model(CONFIG, "float32", SPEC)
    arguments = {
        "prefill": [
            programs.prefill_arguments(model, mesh, num_rows=1, width=128),
            programs.prefill_arguments(model, mesh, num_rows=3, width=16, prefix=128),
        ],
        "copy_rows": [
            programs.copy_arguments(
                model, mesh, num_slots=4, width=narrow, num_rows=3, filled=144
            )
        ],
        "resize_layer": [
            programs.resize_arguments(model, mesh, num_slots=4, width=narrow, to=wide)
        ],
        "decode_chunk": [
            programs.decode_arguments(model, mesh, num_slots=4, width=width)
            for width in (narrow, wide)
        ],
    }
    return {
        name: {getattr(decode, name).lower(*every).as_text() for every in calls}
        for name, calls in arguments.items()
    }


@pytest.mark.long
def test_arguments_without_data_give_the_programs_of_a_call(monkeypatch):
    assert abstract_texts(None) == sample_recorded(monkeypatch)


def test_a_program_compiles_from_its_arguments_alone():
    model = programs.decode_model(CONFIG, "bfloat16", None)
    arguments = programs.decode_arguments(model, None, num_slots=4, width=128)
    compiled = decode.decode_chunk.lower(*arguments).compile()
    cache = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments[2]))
    memory: Any = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cache  # updated in place


@pytest.mark.long
def test_on_a_mesh_arguments_lie_where_those_of_a_call_lie():
    printed = output_on_devices(
        """
        import jax, numpy as np
        from sampling.test_abstract_arguments import CONFIG, SPEC
        from stepalign_jax.config.schema import ParallelConfig
        from stepalign_jax.model.lora import abstract_lora, init_lora
        from stepalign_jax.model.qwen3 import abstract_params, init_params
        from stepalign_jax.parallel.mesh import make_mesh, param_shardings, use_mesh
        from stepalign_jax.sampling import decode, programs
        from stepalign_jax.sampling.engine import Engine
        from stepalign_jax.sampling.request import Address, Request, SamplingParams

        PLAIN = SamplingParams(1.0, 0, 1.0, 4, ())
        mesh = make_mesh(ParallelConfig(data=1, fsdp=2, tensor=2))
        model = programs.decode_model(CONFIG, "float32", SPEC)
        place = lambda tree, boxed: jax.device_put(tree, param_shardings(mesh, boxed))
        engine = Engine(CONFIG, "float32", SPEC, stop_ids=(1,), pad_id=0)
        with use_mesh(mesh):
            real = engine.prepare({
                "params": place(
                    init_params(CONFIG, jax.random.key(0)), abstract_params(CONFIG)
                ),
                "lora": place(
                    init_lora(CONFIG, SPEC, jax.random.key(1)), abstract_lora(CONFIG, SPEC)
                ),
            })
            cache = decode.empty_cache(CONFIG, 4, 128, np.dtype("float32"))
            arguments = programs.decode_arguments(model, mesh, num_slots=4, width=128)
            same = lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim)
            both = [(real, arguments[1]), (cache, arguments[2])]
            leaves = [jax.tree.leaves(jax.tree.map(same, *pair)) for pair in both]
            cut = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(real))
            decode.decode_chunk.lower(*arguments).compile()
            # Three slots, which two devices do not share, are rounded up, not replicated.
            session = engine.session(real, num_slots=3, max_length=129)
            request = Request([5, 6], Address(0, 0, 0, 0, 0, 0), PLAIN)
            session.submit([request] * 3)
            session.step(4)
            rows = {leaf.shape[0] for leaf in jax.tree.leaves(session._cache)}
            here = {leaf.addressable_shards[0].data.shape[0]
                    for leaf in jax.tree.leaves(session._cache)}
        print([all(leaf) for leaf in leaves], cut > 10, rows, here)
        """,
        num_devices=4,
    )
    assert printed == "[True, True] True {4} {2}"
