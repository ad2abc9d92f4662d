# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What an optimizer step changes: how it begins, and where it lies on the mesh.

Solver, teacher and critic are one module on different weights:

    critic    {"params": base}
    teacher   {"params": base} plus the teacher's own tree (none, an adapter, or an average)
    solver    {"params": base} plus the trainable tree
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from stepalign_jax.config.learning import EmaTeacher, InitialTeacher, LiveTeacher, TeacherConfig
from stepalign_jax.model.config import Qwen3Config
from stepalign_jax.model.lora import LoraSpec, abstract_lora, init_lora
from stepalign_jax.model.qwen3 import abstract_params
from stepalign_jax.parallel.mesh import param_shardings, replicated, unboxed

Variables = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """Everything an optimizer step changes; the base weights are not part of it.

    Attributes:
      step: int32 scalar, optimizer steps done.
      trainable: {"lora": ...} or {"params": ...}, float32.
      teacher: what the teacher has beside the base: {} for the frozen base; a tree of the
        form of `trainable` where it is an average, or the adapter that the run started from.
      opt_state: optax state.
    """

    step: jax.Array
    trainable: Variables
    teacher: Variables
    opt_state: Any


def initial_trainable(
    base: Any,
    sizes: Qwen3Config,
    lora: LoraSpec | None,
    adapter: Variables | None,
    *,
    seed: int,
) -> Variables:
    """Returns the float32 tree that a run trains, before its first step; always copies.

    Args:
      base: params of the base.
      sizes: of the network.
      lora: the adapter's spec, or None: all weights train.
      adapter: values to start from, in host memory; None for a fresh adapter.
      seed: of a fresh adapter.
    """
    # Copies even where the base is float32: an update may overwrite what it trains.
    if lora is None:
        params = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), base)
        return {"params": params}
    if adapter is not None:
        return {"lora": jax.tree.map(jnp.array, adapter)}
    return {"lora": init_lora(sizes, lora, jax.random.key(seed))}


def make_state(
    trainable: Variables,
    optimizer: optax.GradientTransformation,
    teacher: TeacherConfig,
    *,
    starts_from_adapter: bool,
) -> TrainState:
    """Returns the state of a run that starts to train the tree `trainable`.

    Args:
      trainable: {"lora": ...} or {"params": ...}, float32.
      optimizer: of that tree.
      teacher: whose weights the teacher has.
      starts_from_adapter: whether `trainable` is an adapter that already changes the base;
        a frozen teacher then keeps a copy of it.
    """
    starts_changed = isinstance(teacher, InitialTeacher) and starts_from_adapter
    keeps_copy = starts_changed or isinstance(teacher, EmaTeacher)
    own = jax.tree.map(jnp.copy, trainable) if keeps_copy else {}
    return TrainState(jnp.int32(0), trainable, own, optimizer.init(trainable))  # pyright: ignore[reportCallIssue]


def teacher_variables(state: TrainState, base: Any, teacher: TeacherConfig) -> Variables:
    """Returns the teacher's variables; those of a live teacher are the solver's."""
    own = state.trainable if isinstance(teacher, LiveTeacher) else state.teacher
    return {"params": base} | own


def follow(own: Variables, trainable: Variables, teacher: TeacherConfig) -> Variables:
    """Returns the teacher's tree after a step: an EmaTeacher's average, else unchanged."""
    if not isinstance(teacher, EmaTeacher):
        return own
    decay = teacher.decay
    return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, own, trainable)


# --- Placement -----------------------------------------------------------------------------


def abstract_state(
    mesh: Mesh,
    sizes: Qwen3Config,
    lora: LoraSpec | None,
    make: Callable[[Variables], TrainState],
) -> TrainState:
    """Returns a ShapeDtypeStruct with its sharding per leaf of the state; reads no weights.

    Trainable weights lie as their logical axes say, and so do the moments and the teacher's
    copies of them; all else is whole on every device.

    Args:
      mesh: where it lies.
      sizes: of the network.
      lora: the adapter's spec, or None: all weights train.
      make: `make_state` with all but its first argument bound.

    Raises:
      UserError: a mesh axis does not divide the axis of a weight that it cuts.
    """
    boxed: Variables = (
        {"params": abstract_params(sizes)}
        if lora is None
        else {"lora": abstract_lora(sizes, lora)}
    )
    placed = jax.tree_util.tree_leaves_with_path(param_shardings(mesh, boxed))
    by_path = {jax.tree_util.keystr(path): sharding for path, sharding in placed}

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # Moments have the paths of their weights behind a path of their own:
        #   .opt_state[1][0].mu['lora']['layers']...   ends as   ['lora']['layers']...
        ends = (jax.tree_util.keystr(path[start:]) for start in range(len(path)))
        sharding = next((by_path[end] for end in ends if end in by_path), replicated(mesh))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(make, unboxed(boxed)))


def state_shardings(abstract: TrainState) -> TrainState:
    """Returns a sharding per leaf of an `abstract_state`.

    An optimizer step returns the state to where it found it: a leaf that moved would change
    the types that every program was compiled for, and each would be compiled again.
    """
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
