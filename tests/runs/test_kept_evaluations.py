# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The evaluations of a run, and of a run by `evaluate`, go on where a signal stopped them."""

import json
from typing import Any

import pytest
from support.runs import small_config, write_config

from stepalign_jax import evaluate
from stepalign_jax.base.files import read_json
from stepalign_jax.base.stopping import EXIT_CAN_GO_ON, Stopped
from stepalign_jax.runs.directory import RunDirectory
from stepalign_jax.sampling.kept import Kept
from stepalign_jax.train import train


class Signal:
    """Stops the process that adds the completion of a given number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.added, self._at, add = 0, 0, Kept.add

        def add_or_stop(kept: Kept, key: str, completion: Any) -> None:
            add(kept, key, completion)
            self.added += 1
            if self.added == self._at:
                raise Stopped("stopped", 130)

        monkeypatch.setattr(Kept, "add", add_or_stop)

    def after(self, number: int) -> None:
        """The next one comes after so many more."""
        self.added, self._at = 0, number


def test_a_runs_evaluation_goes_on(tmp_path, monkeypatch):
    # Of the whole run only the evaluation before it: 4 problems, 2 samples and a greedy one.
    config, signal = small_config(tmp_path / "runs"), Signal(monkeypatch)
    file = RunDirectory.of(config).evaluation_file("before")
    signal.after(7)
    with pytest.raises(Stopped, match=r"before\.json\.partial keeps") as stop:
        train(config)
    assert stop.value.exit_code == EXIT_CAN_GO_ON and not file.exists()
    signal.after(12 - 7 + 1)  # the first completion of the validation that follows
    with pytest.raises(Stopped, match=r"validation_00000\.json\.partial keeps"):
        train(config)
    found, unbroken = read_json(file), small_config(tmp_path / "other")
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "before.json",
        "validation_00000.json.partial",
    ]
    signal.after(13)
    with pytest.raises(Stopped):
        train(unbroken)
    assert read_json(RunDirectory.of(unbroken).evaluation_file("before")) == found


def test_evaluate_goes_on_beside_the_file_it_is_to_write(tmp_path, monkeypatch, capsys):
    signal, to = Signal(monkeypatch), tmp_path / "found.json"
    argv = ["--config", write_config(tmp_path / "c.py", small_config(tmp_path)), "--to"]
    signal.after(5)
    with pytest.raises(Stopped, match="the same command goes on"):
        evaluate.main([*argv, str(to)])
    signal.after(0)
    evaluate.main([*argv, str(to)])
    assert 0 < signal.added <= 12 - 5  # a second thread may have kept more
    signal.after(0)
    evaluate.main([*argv, str(tmp_path / "whole.json")])
    assert signal.added == 12
    assert to.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not list(tmp_path.glob("*.partial"))
    # Without a file there is nothing to keep beside.
    signal.after(0)
    evaluate.main(argv[:2])
    assert signal.added == 0


def test_benchmarks_go_on_behind_the_one_that_is_done(tmp_path, monkeypatch, capsys):
    """A bare model on two benchmarks in their schemas, with all that comes between."""
    rows = {
        "math500": {"problem": "47+3*8-12", "solution": "...", "answer": "59", "level": 1},
        "gsm8k": {"question": "15+2*8-6", "answer": "so 2*8 gives 16\n#### 25"},
    }
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    config = write_config(tmp_path / "c.py", small_config(tmp_path))
    on = ",".join(f"{name}={tmp_path / name}.jsonl" for name in rows)
    argv = ["--model", "packaged:tiny", "--config", config, "--on", on, "--to"]
    signal, to = Signal(monkeypatch), tmp_path / "found.json"
    signal.after(4)  # two samples and a greedy one of each problem
    with pytest.raises(Stopped, match="the same command goes on"):
        evaluate.main([*argv, str(to)])
    assert "packaged:tiny: 1 math500 problems" in capsys.readouterr().out
    signal.after(0)
    evaluate.main([*argv, str(to)])
    assert 0 < signal.added <= 6 - 4
    signal.after(0)
    evaluate.main([*argv, str(tmp_path / "whole.json")])
    assert signal.added == 6
    assert to.read_bytes() == (tmp_path / "whole.json").read_bytes()
    found = read_json(to)
    assert {name: content["problems"] for name, content in found.items()} == {
        "math500": ["47+3*8-12"],
        "gsm8k": ["15+2*8-6"],
    }
    for content in found.values():
        values = content["rows"]["base"]["per_problem"]
        assert values["num_samples"] == [2.0] and values["unparsed"] == [0.0]
        assert values["mean_tokens"][0] > 20  # three reasoning steps and an answer
