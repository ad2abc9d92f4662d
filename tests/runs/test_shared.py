# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What a process that is not the first works with: copies of the small files, and no others."""

from pathlib import Path

from support.processes import files
from support.runs import small_config

from stepalign_jax.runs import shared
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.runs.shared import own_files

COPIED = (
    "runs/mine/config.json",
    "runs/mine/evaluations/before.json",
    "runs/mine/analysis/step_00000/scores.npz",
    "runs/.selected/1.json",
    "store/mine.jsonl",
    "results/found.json.partial",
)
LEFT = (
    "runs/mine/lock.json",
    "runs/mine/checkpoints/1/state",
    "runs/mine/rollouts/step_00000.jsonl",
    "runs/mine/analysis/validation_step_00001/scores.npz",
    "runs/other/config.json",
    "results/found.json",
)


def test_the_others_work_in_copies_of_what_is_small(tmp_path, monkeypatch):
    for name in COPIED + LEFT:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    config = small_config(
        tmp_path / "runs", critiques={"shared_store": str(tmp_path / "store")}
    )
    run, result = RunDirectory(tmp_path / "runs/mine"), tmp_path / "results/found.json"
    with own_files(config, run, result) as alone:
        assert alone == (config, run, result)

    monkeypatch.setattr(shared, "is_alone", lambda: False)
    with own_files(config, run, result) as first:
        assert first == (config, run, result)

    monkeypatch.setattr(shared, "is_first", lambda: False)
    with own_files(config, run, result) as (own, copy, to):
        assert copy is not None and to is not None
        scratch = Path(own.runs_dir).parent
        own_names = [name.replace("results/", "result/") for name in COPIED]
        assert files(scratch) == sorted(own_names)
        assert (scratch / "runs/mine/config.json").read_text() == "runs/mine/config.json"
        assert Path(own.critiques.shared_store) == scratch / "store"
        assert copy.path == scratch / "runs/mine" and to == scratch / "result/found.json"
        assert Path(copy.checkpoints) == run.path / "checkpoints"  # all read the same
    assert not scratch.exists()
