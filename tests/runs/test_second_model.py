# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""A second model as critic. One with the same weights has to give the same run as `self`."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import toy_tokenizers
from support.runs import output_on_devices, small_config

from stepalign_jax import probe, train
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.config.schema import (
    CheckpointCritic,
    Config,
    InTurns,
    OracleCritic,
    OwnDevices,
    PlacementConfig,
    SharedDevices,
)
from stepalign_jax.critics.devices import make_critic_mesh, split_devices
from stepalign_jax.critics.engine_critic import ModelCritic
from stepalign_jax.feedback.contexts import Attempt
from stepalign_jax.huggingface import language_model
from stepalign_jax.huggingface.config import read_sizes
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.huggingface.language_model import LanguageModel
from stepalign_jax.huggingface.tokenizer import load_tokenizer
from stepalign_jax.huggingface.weights import write_model
from stepalign_jax.model.qwen3 import init_params
from stepalign_jax.parallel.offload import Resident
from stepalign_jax.planning.fits import (
    bytes_per_device,
    memory_shares,
    memory_table,
    readable_bytes,
)
from stepalign_jax.problems.arithmetic import arithmetic_problems
from stepalign_jax.problems.problem import Problem
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.setup import initial_state, make_grader, open_run_critic, open_solver
from stepalign_jax.sampling.request import Address, Purpose, sample_addresses

ONE = jax.devices()[:1]


def copy_model(directory: Path) -> str:
    """Copies the packaged model: the same weights from another place."""
    shutil.copytree(resolve_checkpoint("packaged:tiny"), directory)
    return str(directory)


def other_model(directory: Path) -> str:
    """A model of the same sizes that says other things."""
    path = Path(copy_model(directory)) / "model.safetensors"
    rng = np.random.default_rng(0)
    noisy = {
        name: (x + 0.05 * rng.standard_normal(x.shape)).astype(x.dtype)
        for name, x in load_file(path).items()
    }
    save_file(noisy, path)
    return str(directory)


def two_steps(runs_dir: Path, critic: Any, **sections: Any) -> Config:
    return small_config(
        runs_dir,
        critic=critic,
        train={"num_steps": 2, "validate_every_steps": 0},
        problems={"num_test": 2},
        evaluation={"num_samples": 1},
        **sections,
    )


def checkpoint(path: str, placement: PlacementConfig, **keys: Any) -> CheckpointCritic:
    """The miniature's own critic, from a checkpoint of its own."""
    own = small_config(Path("unused")).critic
    shared = {f.name: getattr(own, f.name) for f in dataclasses.fields(own)} | {
        "kind": "checkpoint",
        "path": path,
        "compute_dtype": "float32",
        "placement": placement,
        "tensor": 1,
    }
    return CheckpointCritic(**shared | keys)


def open_all(config: Config) -> tuple[LanguageModel, Resident, ModelCritic]:
    """The loaded model, its initial state and the loaded critic, as `train` makes them."""
    model, _ = open_solver(config)
    state, grader = Resident(), make_grader(config)
    critic = open_run_critic(config, model, grader, (model.weights, state))
    assert isinstance(critic, ModelCritic)
    critic.load()
    model.load()
    state.replace(initial_state(config, model))
    return model, state, critic


def first_addresses(problems: list[Problem]) -> list[Address]:
    ids = [problem.id for problem in problems]
    return sample_addresses(ids, 1, seed=0, purpose=Purpose.SOLVER, step=0)


def findings(config: Config) -> tuple[list[dict[str, Any]], list[Any]]:
    """Trains; returns the metrics and what the teacher read."""
    train.train(config)
    run = RunDirectory.of(config)
    rows = [r for step in (0, 1) for r in read_jsonl(run.rollouts_file(step))]
    contexts = [(row["rollout"], row["context"], row["failure"]) for row in rows]
    return read_jsonl(run.metrics_file), contexts


@pytest.fixture(scope="module")
def same_model(tmp_path_factory) -> str:
    return copy_model(tmp_path_factory.mktemp("model") / "same")


@pytest.mark.long
def test_the_same_weights_give_the_same_run_wherever_they_are(same_model, tmp_path, capsys):
    expected = findings(two_steps(tmp_path / "self", {}))
    assert all(row["critic_tokens"] > 4 for row in expected[0])
    assert any(failure is None for _, _, failure in expected[1])
    config = two_steps(tmp_path, checkpoint(same_model, InTurns()))
    capsys.readouterr()
    assert findings(config) == expected
    # One model of some megabytes is on the device, and one waits.
    table, saved = capsys.readouterr().out, read_json(RunDirectory.of(config).memory_file)
    assert saved["critic"]["bytes_per_device"] == saved["base"]["bytes_per_device"] > 2**20
    assert saved["critic"]["where"] == "device 0 while it is asked, else pinned host memory"
    assert f"critic     {readable_bytes(saved['critic']['bytes_per_device']):>11}  dev" in table


def test_the_critic_is_the_second_model(same_model, tmp_path):
    problems = arithmetic_problems("training", 4, 3, 3)

    def critiques(path: str, placement: PlacementConfig) -> list[str]:
        config = small_config(tmp_path, critic=checkpoint(path, placement))
        model, state, critic = open_all(config)
        before = jax.tree.map(np.asarray, (model.base, state.tree))
        turns, engine = isinstance(placement, InTurns), critic.model.engine

        class Watched:
            """The critic's engine; looks at what is on the devices while it samples."""

            def sample(self, *arguments: Any, **options: Any) -> Any:
                here = {id(x) for x in jax.live_arrays() if x.sharding.memory_kind == "device"}
                away = [id(x) not in here for x in jax.tree.leaves((model.base, state.tree))]
                assert set(away) == {turns}
                return engine.sample(*arguments, **options)

        critic.model.__dict__["engine"] = Watched()
        attempts = [Attempt(problem, str(problem.reference)) for problem in problems]
        reply = critic.review(attempts, first_addresses(problems))
        jax.tree.map(np.testing.assert_array_equal, (model.base, state.tree), before)
        assert critic.model.weights is not model.weights
        gone = {x.is_deleted() for x in jax.tree.leaves(critic.model.base)}
        assert gone == {turns}
        return [critique.text for critique in reply.critiques]

    same, other = critiques(same_model, SharedDevices()), other_model(tmp_path / "other")
    assert critiques(other, InTurns()) == critiques(other, SharedDevices()) != same


def test_a_critic_of_another_family_reads_and_speaks_its_own_tokens(tmp_path):
    directory = toy_tokenizers.build(tmp_path, "bpe", "LlamaTokenizer")
    size = len(load_tokenizer(directory))
    sizes = dataclasses.replace(
        read_sizes(resolve_checkpoint("packaged:tiny")), vocab_size=size, num_layers=1
    )
    params = init_params(sizes, jax.random.key(0))
    write_model(directory, sizes, params, max_shard_bytes=1 << 30)
    config = small_config(
        tmp_path,
        critic=checkpoint(str(directory), SharedDevices(), max_new_tokens=8),
        prompts={"critic_thinking": True},
    )
    model, _, critic = open_all(config)
    (problem,) = arithmetic_problems("training", 1, 3, 3)
    prompt = critic.roles.critic(problem, "Step 1: </s>12", "answer") or []
    text = critic.roles.tokenizer.decode(prompt)
    assert text.startswith(f"<s><start_of_turn>user\n{problem.text}\nExpected: ")
    assert text.endswith("Step 1: </s>12<end_of_turn>\n<start_of_turn>model\n<think>\n")
    assert critic.model.tokenizer is not model.tokenizer
    critiques, lengths, finished, *_ = critic.review(
        [Attempt(problem, "Step 1: </s>12")], first_addresses([problem])
    )
    # The prompt had opened the thought, and noise does not close it.
    assert [critique.failure for critique in critiques] == ["truncated_thinking"]
    assert (lengths, finished) == ([8], [False])
    assert "<think>" not in critiques[0].text


def test_probe_finds_the_same_of_the_same_weights_in_turns(same_model, tmp_path):
    """After the critic's turn the base answers as teacher, so it has to be back."""
    own = probe.probe(two_steps(tmp_path, {}), "test", None)
    second = probe.probe(two_steps(tmp_path, checkpoint(same_model, InTurns())), "test", None)
    assert own == second and own["critic"]["mean_tokens"] > 1


def test_without_a_second_model_the_base_is_the_critic(tmp_path):
    config = small_config(tmp_path)
    model, state, critic = open_all(config)
    assert critic.model.weights is model.weights
    shares = memory_shares(model, state.tree, critic)
    assert (shares["critic"].bytes_per_device, shares["critic"].where) == (0, "the base itself")
    sizes = {name: share.bytes_per_device for name, share in shares.items()}
    base = sum(leaf.nbytes for leaf in jax.tree.leaves(model.base))
    assert sizes["base"] == sizes["trainable"] == base  # float32, all weights train
    assert 2 * base < sizes["optimizer"] < 2 * base + 100  # two moments and counters
    assert sizes["teacher"] == 0
    lines = memory_table(shares).splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(shares)


def test_who_asks_nobody_reads_no_second_model(same_model, tmp_path, monkeypatch):
    read = []
    load = language_model.load_params

    def count(directory, *args, **options):
        read.append(str(directory))
        return load(directory, *args, **options)

    monkeypatch.setattr(language_model, "load_params", count)
    critic = checkpoint(same_model, SharedDevices())
    train.train(two_steps(tmp_path, critic, condition="refsol"))
    assert len(read) == 1 and same_model not in read


def test_bytes_per_device_of_a_cut_tree():
    mesh = jax.sharding.AbstractMesh((2, 4), ("fsdp", "tensor"))
    spec = jax.sharding.PartitionSpec
    cut = jax.sharding.NamedSharding(mesh, spec("fsdp", "tensor"))
    whole = jax.sharding.NamedSharding(mesh, spec())
    tree = {
        "cut": jax.ShapeDtypeStruct((8, 12), np.float32, sharding=cut),
        "whole": jax.ShapeDtypeStruct((5,), np.float16, sharding=whole),
    }
    assert bytes_per_device(tree) == 4 * 3 * 4 + 5 * 2
    assert bytes_per_device({}) == 0


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (66 * 10**9, "61.5 GiB")],
)
def test_readable_bytes(number, text):
    assert readable_bytes(number) == text


@pytest.mark.parametrize(
    ("critic", "sentence"),
    [
        ({"path": "nowhere/at all"}, "critic.path 'nowhere/at all' is not a directory"),
        ({"placement": OwnDevices(num_devices=1)}, "of 1 device(s) at least one must be left"),
        ({"tensor": 3}, "critic.tensor is 3, which does not divide the critic's 1 device(s)"),
        ({"max_new_tokens": 450}, "of the critic's 512 positions its longest prompt takes"),
    ],
)
def test_what_cannot_work_is_refused_before_any_weight_is_read(
    same_model, tmp_path, monkeypatch, critic, sentence
):
    monkeypatch.setattr(language_model, "load_params", None)
    config = small_config(
        tmp_path, critic=checkpoint(**{"path": same_model, "placement": InTurns()} | critic)
    )
    with pytest.raises(UserError) as error:
        train.train(config)
    assert sentence in str(error.value)


def test_a_budget_that_the_model_itself_has_no_room_for_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(language_model, "load_params", None)
    with pytest.raises(UserError, match=r"critic\.max_new_tokens is 450"):
        train.train(small_config(tmp_path, critic={"max_new_tokens": 450}))


class Device(NamedTuple):
    name: str
    process_index: int = 0


def of_processes(*names: str) -> list[Device]:
    """The devices of each process, a letter each."""
    return [Device(name, process) for process, own in enumerate(names) for name in own]


def test_devices_are_split_at_the_end_of_each_process():
    own = checkpoint("anywhere", OwnDevices(num_devices=3))
    names = lambda parts: tuple("".join(d.name for d in part) for part in parts)  # noqa: E731
    assert names(split_devices(own, of_processes("abcdefgh"))) == ("abcde", "fgh")
    for shared in (checkpoint("anywhere", SharedDevices()), OracleCritic()):
        assert split_devices(shared, list("ab")) == (list("ab"), list("ab"))
    with pytest.raises(UserError, match="of 3 device"):
        split_devices(own, of_processes("abc"))
    four = checkpoint("anywhere", OwnDevices(num_devices=4))
    assert names(split_devices(four, of_processes("abcd", "efgh"))) == ("abef", "cdgh")
    assert names(split_devices(own, of_processes("ab", "cd", "ef"))) == ("ace", "bdf")
    for critic, devices in ((own, ("abcd", "efgh")), (four, ("ab", "cdef"))):
        with pytest.raises(UserError, match="2 processes cannot share"):
            split_devices(critic, of_processes(*devices))


def test_copies_of_a_second_model_share_its_devices():
    critic = checkpoint("anywhere", SharedDevices(), tensor=2)
    sizes = {"data": 4, "fsdp": 1, "tensor": 2}
    assert dict(make_critic_mesh(critic, ONE * 8).shape) == sizes
    with pytest.raises(UserError, match=r"critic\.tensor is 2, which does not divide"):
        make_critic_mesh(critic, ONE * 3)
    whole = dataclasses.replace(critic, tensor=1)  # 8 copies share a batch of 4, rounded up
    assert dict(make_critic_mesh(whole, ONE * 8).shape)["data"] == 8


def run_on(num_devices: int, config: Config) -> Any:
    """`findings` of a run in a process with so many simulated devices."""
    program = (
        "import json\nfrom stepalign_jax.config.learning import *\n"
        "from stepalign_jax.config.schema import *\n"
        f"from runs.test_second_model import findings\nfound = findings({config!r})\n"
        "print(json.dumps(found))"
    )
    output = output_on_devices(program, num_devices=num_devices, timeout_secs=600)
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(1800)  # five runs in processes of their own, eight devices on few cores
def test_every_placement_on_eight_devices_gives_the_run_of_self(same_model, tmp_path):
    """Training on four devices, critic on four; then both on all eight, and in turns."""
    half = {"parallel": {"data": 2, "fsdp": 2, "tensor": 1}}
    full = {"parallel": {"data": 2, "fsdp": 2, "tensor": 2}}

    def config(name: str, critic: Any, sizes: dict[str, Any]) -> Config:
        return two_steps(tmp_path / name, critic, **sizes)

    own = checkpoint(same_model, OwnDevices(num_devices=4))
    found = run_on(8, config("own", own, half))
    assert found == run_on(4, config("self-4", {}, half))
    expected = run_on(8, config("self-8", {}, full))
    for name, placement in {"in_turns": InTurns(), "shared": SharedDevices()}.items():
        critic = checkpoint(same_model, placement, tensor=2)
        metrics, contexts = run_on(8, config(name, critic, full))
        assert contexts == expected[1]
        assert metrics == expected[0]
