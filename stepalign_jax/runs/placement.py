# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the state of a run lies on the mesh, from its first step to its last.

An optimizer step returns the state to where it found it: a leaf that moved would change the
types that every program was compiled for, and each would be compiled again.
"""

from functools import partial
from typing import Any

import jax
from flax import linen as nn

from stepalign_jax.config.schema import Config
from stepalign_jax.model.lora import abstract_lora
from stepalign_jax.model.qwen3 import abstract_params
from stepalign_jax.parallel.mesh import param_shardings, replicated
from stepalign_jax.runs.setup import Workbench, make_state
from stepalign_jax.training.step import TrainState


def state_shardings(config: Config, bench: Workbench) -> TrainState:
    """Returns a sharding per leaf of the run's TrainState.

    Trainable weights lie as their logical axes say, and so do the moments and the teacher's
    copies of them; all else is whole on every device.

    Raises:
      UserError: a mesh axis does not divide the axis of a weight that it cuts.
    """
    boxed: dict[str, Any] = (
        {"params": abstract_params(bench.model_config)}
        if bench.lora is None
        else {"lora": abstract_lora(bench.model_config, bench.lora)}
    )
    placed = jax.tree_util.tree_leaves_with_path(param_shardings(bench.mesh, boxed))
    by_path = {jax.tree_util.keystr(path): sharding for path, sharding in placed}

    def find(path: Any, _leaf: Any) -> jax.sharding.NamedSharding:
        # Moments have the paths of their weights behind a path of their own.
        ends = (jax.tree_util.keystr(path[start:]) for start in range(len(path)))
        return next((by_path[end] for end in ends if end in by_path), replicated(bench.mesh))

    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
    shapes = jax.tree.map(lambda box: box.value, boxed, is_leaf=is_box)
    abstract = jax.eval_shape(partial(make_state, config), shapes)
    return jax.tree_util.tree_map_with_path(find, abstract)
