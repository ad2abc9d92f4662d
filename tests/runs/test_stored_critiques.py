# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs whose critic is a server: what they keep is enough to have them again, bit for bit."""

import shutil

import jax
import numpy as np
import pytest
from support.runs import small_config
from support.stub_server import KEY, SECRET, StubServer, endpoint_critic, serving

from stepalign_jax import train
from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.base.hashing import digest, stable_hash32
from stepalign_jax.config.critics import ReplayCritic
from stepalign_jax.critics import client
from stepalign_jax.critics.endpoint import NUM_SELF_TESTS
from stepalign_jax.critics.store import read_store
from stepalign_jax.runs.checkpoint import restore_latest
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.setup import initial_state, open_solver

TWO_STEPS = {
    "num_steps": 2, "validate_every_steps": 0, "problems_per_step": 8, "samples_per_problem": 1,
}  # fmt: skip
pytestmark = pytest.mark.long  # they share a run


def way_of(prompt):
    """The test questions, and most others, are answered."""
    return "ok" if stable_hash32(prompt) % 3 or "*" not in prompt else "status_500"


def config_for(runs_dir, critic, **sections):
    return small_config(runs_dir, critic=critic, train=TWO_STEPS, **sections)


def endpoint(server):
    return endpoint_critic(
        server.url, max_new_tokens=40, concurrency=4, timeout_secs=60.0, price_input=1.0,
        price_output=2.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """The run, its config, and the server's record of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY, SECRET)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(client, "FIRST_PAUSE_SECS", 0.01)
        with serving(StubServer(way_of)) as server:
            config = config_for(tmp_path_factory.mktemp("live"), endpoint(server))
            train.train(config)
            yield RunDirectory.of(config), config, server


def weights_hash(run, config):
    model, _ = open_solver(config)
    model.load()
    restored = restore_latest(run.checkpoints, initial_state(config, model))
    assert restored is not None and int(restored.state.step) == config.train.num_steps
    leaves = sorted(
        (str(path), np.asarray(leaf).tobytes().hex())
        for path, leaf in jax.tree_util.tree_leaves_with_path(restored.state.trainable)
    )
    return digest(leaves)


def test_every_outcome_is_counted_and_none_is_a_number_in_the_loss(live):
    run, _, server = live
    rows, metrics = read_store(run.critiques_file), read_jsonl(run.metrics_file)
    assert len(server.bodies) == NUM_SELF_TESTS + len(rows)
    for row in metrics:
        counts = {k: v for k, v in row.items() if k.startswith("critic_outcome/")}
        assert sum(counts.values()) == row["critic_requests"] == 8
        assert set(counts) == {"critic_outcome/ok", "critic_outcome/unavailable"}
        rollouts = read_jsonl(run.rollouts_file(row["step"]))
        failed = [r for r in rollouts if r["failure"]]
        assert len(failed) == counts["critic_outcome/unavailable"] > 0
        assert all(r["advantage"] is None for r in failed)
        used = [len(r["tokens"]) for r in rollouts if not r["failure"]]
        assert row["tokens_in_loss"] == sum(used)
    timings = read_jsonl(run.timings_file)
    assert sum(row["critic_asked"] for row in timings) == len(rows)
    (taken,) = read_json(run.summary_file)["critics"].values()
    assert taken["requests"] == len(rows) and taken["tokens"] > 0
    assert taken["cost"] == pytest.approx(sum(row["critic_cost"] for row in metrics))


def test_no_secret_is_anywhere_on_disk(live):
    run, _, server = live
    assert SECRET in server.headers[0]
    files = [path for path in run.path.parent.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_a_replay_ends_in_the_same_weights(live, tmp_path):
    run, config, _ = live
    critic = ReplayCritic(
        store=str(run.critiques_file), critic="", accepts="trace", require_all=True
    )
    again = config_for(tmp_path, critic)
    train.train(again)
    copy = RunDirectory.of(again)
    assert weights_hash(copy, again) == weights_hash(run, config)
    assert read_jsonl(copy.metrics_file) == read_jsonl(run.metrics_file)
    assert not copy.critiques_file.exists()


def test_a_killed_run_asks_only_what_failed(live, tmp_path):
    run, config, server = live
    shutil.copytree(run.path, tmp_path / run.path.name)
    again = config_for(tmp_path, config.critic)
    copy = RunDirectory.of(again)
    copy.summary_file.unlink()
    shutil.rmtree(copy.checkpoints)
    stored = copy.critiques_file.read_bytes()
    copy.critiques_file.write_bytes(stored[:-10])  # the kill cut the last row
    lost = read_store(run.critiques_file)[-1]
    failed = {row.key for row in read_store(run.critiques_file) if row.outcome != "ok"}
    asked = len(server.bodies)
    train.train(again)
    assert len(server.bodies) - asked - NUM_SELF_TESTS == len(failed | {lost.key})
    assert weights_hash(copy, again) == weights_hash(run, config)
    assert read_jsonl(copy.metrics_file) == read_jsonl(run.metrics_file)


def test_a_run_of_the_base_can_be_recorded_and_replayed(live, tmp_path):
    recorded = config_for(tmp_path / "self", {}, critiques={"store": "all"})
    train.train(recorded)
    run = RunDirectory.of(recorded)
    assert len(read_store(run.critiques_file)) == 16
    critic = ReplayCritic(
        store=str(run.critiques_file), critic="", accepts="trace", require_all=True
    )
    again = config_for(tmp_path / "replay", critic)
    train.train(again)
    assert weights_hash(run, recorded) == weights_hash(RunDirectory.of(again), again)
