# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a stopped job has sampled is kept on disk, and used by that same job alone."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from sampling.test_engine import BASE, ENGINE, LORA, SAMPLING, requests_for
from support.models import CONFIG, map_leaves
from support.runs import output_on_devices

from stepalign_jax.base.stopping import EXIT_CAN_GO_ON, Stopped
from stepalign_jax.sampling.engine import Engine
from stepalign_jax.sampling.kept import Kept, kept_beside, request_keys, weights_digest

ROWS = range(9)


def sample(kept: Kept | None = None, variables: Any = BASE, **options: Any) -> Any:
    options = {"batch_size": 2, **options}
    return ENGINE.sample(variables, requests_for(ROWS), kept=kept, **options)


def stop_after(count: int) -> Any:
    def progress(done: int) -> None:
        if done >= count:
            raise Stopped("stopped by SIGINT before the command was done", 130)

    return progress


def stopped(result: Path, count: int = 3) -> Stopped:
    """A job that is stopped once so many requests are through."""
    with pytest.raises(Stopped) as stop, kept_beside(result) as kept:
        sample(kept, progress=stop_after(count))
    return stop.value


@pytest.mark.long
def test_a_stopped_job_goes_on_and_ends_in_the_same_bits(tmp_path):
    whole, result, seen = sample(), tmp_path / "found.json", []
    stop = stopped(result)
    partial = tmp_path / "found.json.partial"
    assert f"{partial} keeps its completions, and the same command goes on" in str(stop)
    assert stop.exit_code == EXIT_CAN_GO_ON
    num_kept = len(partial.read_text().splitlines())
    assert 3 <= num_kept < 9
    with kept_beside(result) as kept:
        again = sample(kept, progress=seen.append)
        assert kept is not None and kept.num_added == 9 - num_kept
    assert seen[0] > num_kept and seen[-1] == 9
    for name in ("tokens", "logprobs", "lengths", "finished"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert list(tmp_path.iterdir()) == []


def test_rows_that_a_kill_cut_short_are_drawn_again(tmp_path):
    result = tmp_path / "found.json"
    stopped(result)
    partial = tmp_path / "found.json.partial"
    text = partial.read_text()
    num_kept = len(text.splitlines())
    partial.write_text(text[:-20])
    with kept_beside(result) as kept:
        again = sample(kept)
        assert kept is not None and kept.num_added == 9 - num_kept + 1
        rows = partial.read_text().splitlines()
    assert len(rows) == 10 and sum(row.endswith("]]") for row in rows) == 9
    np.testing.assert_array_equal(again.tokens, sample().tokens)


@pytest.mark.parametrize(
    "change", ["weights", "adapter", "seed", "temperature", "slots", "stop"]
)
def test_what_another_job_kept_is_not_used(change, tmp_path):
    result, engine, variables, options = tmp_path / "found.json", ENGINE, BASE, {}
    stopped(result)
    requests = requests_for(ROWS)
    if change == "weights":
        # One value of one leaf, by one bit.
        leaf = BASE["params"]["final_norm"]["scale"]
        other = leaf.at[3].set(jnp.nextafter(leaf[3], jnp.float32(9)))
        variables = {"params": {**BASE["params"], "final_norm": {"scale": other}}}
    elif change == "adapter":
        variables = {**BASE, "lora": LORA}
    elif change == "seed":
        requests = requests_for(ROWS, seed=12)
    elif change == "temperature":
        requests = requests_for(ROWS, SAMPLING._replace(temperature=0.5))
    elif change == "slots":
        options = {"batch_size": 4}
    else:
        engine = Engine(CONFIG, jnp.float32, None, stop_ids=(1,), pad_id=0)
    with kept_beside(result) as kept:
        engine.sample(variables, requests, kept=kept, **{"batch_size": 2, **options})
        assert kept is not None and kept.num_added == 9


def test_a_job_that_keeps_nothing_leaves_nothing(tmp_path):
    with kept_beside(None) as kept:
        assert kept is None
    with pytest.raises(Stopped, match=r"^stopped$"), kept_beside(tmp_path / "a" / "found.json"):
        raise Stopped("stopped", 130)
    assert list((tmp_path / "a").iterdir()) == []


def test_where_nothing_can_be_written_the_job_runs_all_the_same(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with kept_beside(tmp_path / "file" / "found.json") as kept:
        assert kept is None
    assert "note: nothing is kept for a later start" in capsys.readouterr().err


def test_a_digest_holds_places_names_and_signs():
    weights = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.zeros(3, jnp.bfloat16)}
    turned = {**weights, "a": weights["a"][:, ::-1]}
    swapped = {**weights, "a": weights["a"].at[0, 1].set(4).at[1, 0].set(1)}
    renamed = {"a": weights["a"], "c": weights["b"]}
    signed = {**weights, "b": -weights["b"]}
    digests = {weights_digest(w) for w in (weights, turned, swapped, renamed, signed)}
    assert len(digests) == 5
    assert weights_digest(map_leaves(weights, lambda leaf: leaf + 0)) == weights_digest(weights)


def test_a_key_is_a_requests_own():
    requests = requests_for(ROWS)
    assert len(set(request_keys("model", BASE, requests))) == 9
    assert request_keys("model", BASE, requests) != request_keys("other", BASE, requests)


def test_a_digest_does_not_depend_on_where_the_weights_lie():
    code = """
        import jax, jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec as P
        from stepalign_jax.sampling.kept import weights_digest
        weights = {"w": jax.random.normal(jax.random.key(0), (4, 8))}
        mesh = jax.make_mesh((2, 2), ("x", "y"))
        cut = jax.device_put(weights, NamedSharding(mesh, P("x", "y")))
        print(weights_digest(weights) == weights_digest(cut), len(cut["w"].sharding.device_set))
    """
    assert output_on_devices(code, num_devices=4) == "True 4"
