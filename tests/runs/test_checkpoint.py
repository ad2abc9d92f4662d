# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.models import assert_same_bits

from stepalign_jax.base.errors import UserError
from stepalign_jax.runs import checkpoint


@flax.struct.dataclass
class State:
    step: jax.Array
    params: Any
    optimizer: Any
    average: Any


def make_state(seed: int = 0, width: int = 3) -> State:
    normal = jax.random.normal(jax.random.key(seed), (2, width))
    odd = np.array([0x7FC01234, 0x80000000, 0x00000001], np.uint32)  # NaN payload, -0, denormal
    params = {
        "layers": {"kernel": normal, "odd": jnp.asarray(odd.view(np.float32))},
        "half": normal.astype(jnp.bfloat16),
    }
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(jnp.int32(seed), params, transform.init(params), None)


def abstract(state: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def save_steps(directory: pathlib.Path, *steps: int, num_to_keep: int = 5) -> None:
    checkpoints = checkpoint.Checkpoints(directory, num_to_keep=num_to_keep)
    for step in steps:
        data_state = {"num_problems_seen": 8 * step}
        checkpoints.save(step, make_state(step), data_state=data_state)
    checkpoints.close()


def flip_bit(path: pathlib.Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


def assert_restored(actual: Any, expected: Any) -> None:
    """JAX arrays, bit for bit."""
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(actual))
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("as_shapes", [True, False])
def test_round_trip_keeps_bits_structure_and_json(tmp_path, as_shapes):
    save_steps(tmp_path / "new" / "checkpoints", 4)
    asked = abstract(make_state()) if as_shapes else make_state(9)
    restored = checkpoint.restore_latest(tmp_path / "new" / "checkpoints", asked)
    assert restored is not None
    assert_restored(restored.state, make_state(4))
    assert restored[0] == 4
    assert restored.data_state == {"num_problems_seen": 32}


def test_nothing_to_restore(tmp_path):
    assert checkpoint.restore_latest(tmp_path / "missing", abstract(make_state())) is None
    assert not (tmp_path / "missing").exists()


def test_keeps_the_newest_and_a_saved_step_can_be_saved_again(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 3, num_to_keep=2)
    assert checkpoint.finished_steps(tmp_path) == [2, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
    save_steps(tmp_path, 4, num_to_keep=1)  # another process, another number
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4"]


@pytest.mark.parametrize(
    "content",
    [
        *('{"files": {}, "state": []}', '{"files": {"x": "y"}, "state": [["x"]]}'),
        *('{"files": {"x": "y"}, "state": "abc"}', "{}", "[]", "", "{"),
    ],
)
def test_an_empty_manifest_is_damaged(tmp_path, content):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "2" / checkpoint.MANIFEST).write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is damaged; delete .* step 1"):
        checkpoint.restore_latest(tmp_path, abstract(make_state()))


def test_every_flipped_bit_is_refused(tmp_path):
    save_steps(tmp_path, 1, 2)
    asked = abstract(make_state())
    files = sorted(p for p in (tmp_path / "2").rglob("*") if p.stat().st_size and p.is_file())
    assert len(files) >= 8
    for path in files:
        if path.name == checkpoint.MANIFEST and path.parent == tmp_path / "2":
            continue
        flip_bit(path, 4 * path.stat().st_size)  # the middle one
        with pytest.raises(UserError) as refusal:
            checkpoint.restore_latest(tmp_path, asked)
        assert f"{path} is damaged" in str(refusal.value)
        assert f"delete {tmp_path / '2'} to go on from step 1" in str(refusal.value)
        flip_bit(path, 4 * path.stat().st_size)
    restored = checkpoint.restore_latest(tmp_path, asked)  # all bits are back
    assert restored is not None and restored.step == 2


def test_missing_file_and_damaged_manifest_are_refused(tmp_path):
    save_steps(tmp_path, 1)
    asked = abstract(make_state())
    path = tmp_path / "1" / "run" / "metadata"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match=r"metadata is missing; delete .* again from step 0"):
        checkpoint.restore_latest(tmp_path, asked)
    path.write_bytes(content)
    manifest = tmp_path / "1" / checkpoint.MANIFEST
    for damaged in ("", "[]", '{"files": {}}', manifest.read_text()[:-9]):
        manifest.write_text(damaged)
        with pytest.raises(UserError, match=r"manifest\.json is damaged"):
            checkpoint.restore_latest(tmp_path, asked)


def test_interrupted_save_is_passed_over_and_then_cleared(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "2" / checkpoint.MANIFEST).unlink()  # killed before the manifest
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()  # killed within Orbax
    (tmp_path / "20-my-notes").mkdir()  # none of ours
    restored = checkpoint.restore_latest(tmp_path, abstract(make_state()))
    assert restored is not None and restored.step == 1
    assert (tmp_path / "2").exists()  # reading deletes nothing
    save_steps(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "20-my-notes"]
    restored = checkpoint.restore_latest(tmp_path, abstract(make_state()))
    assert restored is not None and restored.step == 2


@pytest.mark.parametrize("num_to_keep", [1, 2])
def test_a_kill_at_any_write_leaves_a_usable_checkpoint(tmp_path, monkeypatch, num_to_keep):
    """With one checkpoint kept, too: the old one goes after the new one's manifest."""
    save_steps(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "write_json", lambda *_: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        save_steps(tmp_path, 2, num_to_keep=num_to_keep)
    restored = checkpoint.restore_latest(tmp_path, abstract(make_state()))
    assert restored is not None and restored.step == 1


def test_state_of_another_config_is_refused_by_name(tmp_path):
    save_steps(tmp_path, 1)
    with pytest.raises(UserError) as refusal:
        checkpoint.restore_latest(tmp_path, abstract(make_state(width=5)))
    assert "params/half is bfloat16[2, 3]" in str(refusal.value)
    assert "needs bfloat16[2, 5]" in str(refusal.value)
    other = dataclasses.replace(make_state(), average={"layers": jnp.zeros(2)})
    with pytest.raises(UserError, match="average/layers is absent"):
        checkpoint.restore_latest(tmp_path, abstract(other))
    fewer = dataclasses.replace(make_state(), optimizer=None)
    with pytest.raises(UserError, match="needs none"):
        checkpoint.restore_latest(tmp_path, abstract(fewer))
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), make_state())
    with pytest.raises(UserError, match="needs bfloat16"):  # Orbax would cast without a word
        checkpoint.restore_latest(tmp_path, half)


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write checkpoints to .*Not a directory"):
        checkpoint.Checkpoints(tmp_path / "file" / "checkpoints", num_to_keep=1)
    with pytest.raises(UserError, match="leaves nothing to resume from"):
        checkpoint.Checkpoints(tmp_path, num_to_keep=0)


def test_failed_save_is_one_sentence(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path / "run", num_to_keep=1)
    os.rmdir(tmp_path / "run")
    (tmp_path / "run").write_text("")  # as root, a mode would not stop the write
    with pytest.raises(UserError, match=r"cannot write checkpoint .*before it are whole"):
        checkpoints.save(1, make_state(), data_state={})
    checkpoints.close()


def test_a_full_disk_is_one_sentence_with_what_is_needed_and_free(tmp_path, monkeypatch):
    """The words are TensorStore's. The writes beside the one that failed end later."""
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    save_steps(tmp_path, 1)
    with contextlib.closing(checkpoint.Checkpoints(tmp_path, num_to_keep=2)) as checkpoints:
        unfinished = tmp_path / "2.orbax-checkpoint-tmp"

        def save(*_: Any, **__: Any) -> bool:
            unfinished.mkdir()
            (unfinished / "half").write_bytes(b"half of the arrays")
            raise ValueError(
                'RESOURCE_EXHAUSTED: Error writing "step/0" in OCDBT database: Failed to write '
                "4653056 bytes to file 7: No space left on device [os_error_code='28']"
            )

        monkeypatch.setattr(checkpoints._manager, "save", save)
        monkeypatch.setattr(
            checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=2_500_000)
        )
        state = {"weights": jnp.zeros((1000, 1100)), "half": jnp.zeros(100_000, jnp.bfloat16)}
        with pytest.raises(UserError) as refusal:
            checkpoints.save(2, state, data_state={})
        assert str(refusal.value) == (
            f"cannot write checkpoint {tmp_path / '2'}: No space left on device, where it "
            "takes about 4.6 MB and 2.5 MB are free; the checkpoints before it are whole, and "
            "the same command goes on from there"
        )
        assert not unfinished.exists()
        for words in ("Event loop is closed", "another"):
            sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(words)))
    assert [str(found.exc_value) for found in reported] == ["another"]
    assert checkpoint.finished_steps(tmp_path) == [1]


@pytest.mark.parametrize(
    "name",
    [
        *("runs [v2]", "[!a]", "a*b?", "{x,y}", "a#b%41&c", 'it\'s "q"', "ünï 数", "a\\b"),
        *("gs:", "$HOME", "a\nb", "~", os.fsdecode(b"caf\xe9")),
    ],
)
def test_any_name_of_the_directory(tmp_path, name, monkeypatch):
    """Orbax takes some for patterns, TensorStore for other paths."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()
    directory = tmp_path / name / "run" / "checkpoints"
    save_steps(directory, 1, 2, 3, num_to_keep=2)
    save_steps(directory, 4, num_to_keep=2)
    assert checkpoint.finished_steps(directory) == [3, 4]
    restored = checkpoint.restore_latest(directory, abstract(make_state()))
    assert restored is not None and restored.step == 4
    assert_restored(restored.state, make_state(4))
    part = {"params": abstract(make_state().params)}
    assert_restored(checkpoint.restore_part(directory, part, 3)["params"], make_state(3).params)
    assert not list((tmp_path / "links").iterdir())
    moved = tmp_path / "moved"
    directory.rename(moved)
    restored = checkpoint.restore_latest(moved, abstract(make_state()))
    assert restored is not None
    assert_restored(restored.state, make_state(4))


def test_a_name_that_no_link_can_replace_is_refused(tmp_path, monkeypatch):
    for place, part in (("[links]", "has such a name too"), ("nowhere", "No such file")):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / place))
        (tmp_path / "[links]").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=f"Orbax takes for a pattern.*{part}.*TMPDIR"):
            save_steps(tmp_path / "runs [v2]", 1)


def test_leaves_go_to_the_sharding_asked_for(tmp_path):
    save_steps(tmp_path, 1)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    asked = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), make_state()
    )
    restored = checkpoint.restore_latest(tmp_path, asked)
    assert restored is not None
    assert {leaf.sharding for leaf in jax.tree.leaves(restored.state)} == {sharding}
    assert_restored(restored.state, make_state(1))
