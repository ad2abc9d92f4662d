# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""launch/tpu.sh: what it refuses, prints, adopts, keeps and gives up, one history each."""

import re
from pathlib import Path

import pytest
from support.launching import TRAINING, TYPE, WHERE, Place

TPU = Path("tpu.sh")
OURS = {
    "request": "ACTIVE", "vm": "READY", "label": "launched", "type": "v5litepod-8",
    "disk": "installed",
}  # fmt: skip
THEIRS = {"vm": "READY", "type": "v5litepod-8", "disk": "fresh"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.begin()
    return place


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the first argument is what to do"),
        (["train", *WHERE[2:], *TYPE, *TRAINING], "--project is not given"),
        (["train", *WHERE[:2], *WHERE[4:], *TYPE, *TRAINING], "--zone is not given"),
        (["train", *WHERE[:4], *TYPE, *TRAINING], "--name is not given"),
        (["delete"], "--project is not given"),
        (["train", *WHERE, *TYPE], "training has no arguments"),
        (["train", *WHERE, *TYPE, "--", "--runs_dir=x"], "--runs_dir is where"),
        (["train", *WHERE, "--type", "v9-8", *TRAINING], "the software of a v9-8"),
        (["train", *WHERE, *TYPE, "--send", "data/none", *TRAINING], "data/none is not there"),
        (["train", *WHERE, *TYPE, "--spto", *TRAINING], "--spto"),
        (["train", *WHERE, *TYPE, "tiny"], "'tiny' is no option"),
        (["train", *WHERE[:4], "--name", "My_TPU", *TYPE, *TRAINING], "no name of a TPU VM"),
        (["train", *WHERE, "--poll-secs", "soon", *TRAINING], "'soon' is no whole number"),
        (["train", *WHERE, "--poll-secs"], "--poll-secs needs a value"),
    ],
)
def test_mistakes_are_refused_in_one_sentence_before_any_call(place, arguments, words):
    ended = place.run(TPU, *arguments)
    assert ended.code == 2
    assert re.fullmatch(r"error: .*\n", ended.err)
    assert words in ended.err
    assert not place.lines("calls")


def test_a_missing_vm_without_a_type_is_refused(place):
    ended = place.run(TPU, "train", *WHERE, "--poll-secs", "0", *TRAINING)
    assert ended.code == 2
    assert "give --type" in ended.err
    assert not any(" create " in call for call in place.lines("calls"))


def test_help_has_an_example_that_parses(place):
    ended = place.run(TPU, "--help")
    example = ended.out.split("example:\n")[1].split("exit")[0].replace("\\\n", "").split()
    assert example[0] == "launch/tpu.sh"
    (place.path / "data" / "openmath").mkdir(parents=True)
    dry = place.run(TPU, "train", "--dry-run", *example[2:])
    assert dry.code == 0, dry.err


def test_from_nothing_to_results_and_back(place):
    ended = place.train("--spot")
    assert ended.code == 0, ended.err
    assert not place.left()
    assert (place.results / "progress").read_text() == "3\n"
    assert [f"optimizer step {n}" in ended.out for n in (1, 2, 3)] == [True] * 3
    assert "nothing named mine is left in my-zone" in ended.err
    (create,) = [call for call in place.lines("calls") if " create " in call]
    assert "--spot" in create
    assert "--valid-until-duration=24h" in create


def without_scratch(calls: list[str]) -> list[str]:
    return [re.sub(r"\S*/tmp\.\w+/", "", call) for call in calls]


def test_dry_run_prints_exactly_the_calls_of_a_smooth_run(place):
    (place.path / "runs" / "on-mine").mkdir(parents=True)
    (place.results / "progress").write_text("0\n")
    dry = place.train("--dry-run")
    assert dry.code == 0, dry.err
    assert not place.lines("calls")
    place.begin(goal="1")
    assert place.train().code == 0
    assert without_scratch(dry.out.splitlines()) == without_scratch(place.lines("calls"))


@pytest.mark.parametrize("command", ["create", "status", "logs", "fetch", "stop", "delete"])
def test_every_command_has_a_dry_run(place, command):
    dry = place.run(TPU, command, *WHERE, *TYPE, "--dry-run")
    assert dry.code == 0, dry.err
    assert dry.out.startswith("gcloud compute tpus ")
    assert not place.lines("calls")


def test_a_vm_that_was_there_is_taken_and_left(place):
    place.begin(**THEIRS)
    ended = place.train()
    assert ended.code == 0, ended.err
    assert place.state()["vm"] == "READY"
    assert "taking mine as it is" in ended.err
    assert ended.err.splitlines()[-1].startswith("  gcloud compute tpus tpu-vm delete mine ")


def test_a_vm_of_another_type_is_refused(place):
    place.begin(**{**THEIRS, "type": "v6e-8"})
    ended = place.train()
    assert ended.code == 2
    assert "mine is a v6e-8, not a v5litepod-8" in ended.err


def test_keep_leaves_the_vm_and_the_same_command_without_it_deletes(place):
    kept = place.train("--keep")
    assert kept.code == 0
    assert place.left()
    assert "still there, and billed" in kept.err
    calls = len(place.lines("calls"))
    assert place.train().code == 0
    assert not place.left()
    assert not any(" start " in call for call in place.lines("calls")[calls:])


def test_a_finished_training_rents_nothing_again(place):
    assert place.train().code == 0
    calls = len(place.lines("calls"))
    again = place.train()
    assert again.code == 0
    assert "this training is finished" in again.err
    assert all(" describe " in call for call in place.lines("calls")[calls:])


def test_a_preempted_vm_is_made_again_and_training_goes_on_from_what_was_fetched(place):
    place.begin(["ok"] * 21 + ["preempt"])
    ended = place.train()
    assert ended.code == 0, ended.err
    assert "restart 1 of" in ended.err
    starts = [line for line in place.lines("trained") if line.startswith("start")]
    assert starts == ["start 0", "start 2"]
    assert not place.left()


def test_what_training_exits_with_is_what_the_launcher_exits_with(place):
    place.begin([*["ok"] * 12, "exit1"])
    ended = place.train()
    assert ended.code == 1
    assert "training ended with 1; results are in" in ended.err
    assert not place.left()


def test_exit_75_starts_training_again_until_restarts_run_out(place):
    place.begin(["ok"] * 12 + ["exit75"])
    assert place.train().code == 0
    starts = [line for line in place.lines("trained") if line.startswith("start")]
    assert len(starts) == 2
    place.results.joinpath(".finished").unlink()
    place.begin(["ok"] * 12 + ["exit75"] * 60)
    ended = place.train("--max-restarts", "2")
    assert ended.code == 1
    assert "more than --max-restarts=2" in ended.err
    assert "Delete it:" in ended.err


def test_a_vm_that_refuses_ssh_is_given_up_and_named(place):
    place.begin(**OURS)
    place.events(["ok", "ok", *["refuse", "ok", "ok"] * 12])
    ended = place.train()
    assert ended.code == 75
    assert "after 10 tries" in ended.err
    assert place.left()
    assert "Delete it:" in ended.err


def test_a_vm_on_which_nothing_installs_is_given_up_and_named(place):
    place.begin(**OURS)
    place.events(["ok", "ok", "ok", "ok", "refuse"] * 20)  # looks, state, copies, setup
    ended = place.train()
    assert ended.code == 75
    assert "after 10 tries" in ended.err
    assert "Delete it:" in ended.err


def test_a_create_that_times_out_and_comes_later_is_used(place):
    place.begin(["ok", "ok", "late"])
    ended = place.train()
    assert ended.code == 0, ended.err
    assert place.state()["made"] == "1"
    assert not place.left()
    assert "without a clear answer" in ended.err


@pytest.mark.parametrize("event", ["odd", "refuse"])
def test_nothing_is_made_or_deleted_while_the_cloud_says_what_nobody_knows(place, event):
    place.begin([event] * 60, **OURS)
    ended = place.train()
    assert ended.code == 75
    assert all(" describe " in call for call in place.lines("calls"))
    assert "no answer to rely on" in ended.err


def test_another_training_on_the_vm_is_left_alone(place):
    place.begin(**OURS, train="running", job="1234")
    ended = place.train()
    assert ended.code == 2
    assert "trains with other arguments" in ended.err
    assert place.state()["train"] == "running"


def test_results_stay_when_what_comes_is_no_archive(place):
    (place.path / "runs" / "on-mine").mkdir(parents=True)
    (place.results / "progress").write_text("2\n")
    place.begin(["ok"] * 3 + ["mangled"], **OURS, train="0", progress="3")
    ended = place.run(TPU, "fetch", *WHERE, *TYPE)
    assert ended.code == 75
    assert "no archive" in ended.err
    assert (place.results / "progress").read_text() == "2\n"


def test_stop_ends_training_and_the_launcher_that_follows_it(place):
    place.begin(**OURS, train="running", job="7")
    assert place.run(TPU, "stop", *WHERE, *TYPE).code == 0
    assert place.state()["train"] == "stopped"
    status = place.run(TPU, "status", *WHERE, *TYPE)
    assert "training: stopped" in status.err


def test_a_launcher_whose_training_is_stopped_elsewhere_ends_and_leaves_the_vm(place):
    place.begin([*["ok"] * 9, "exitstopped"], **OURS)
    ended = place.train()
    assert ended.code == 75
    assert "training was stopped after a checkpoint" in ended.err
    assert place.left()


def test_delete_deletes_what_others_made_too(place):
    place.begin(**THEIRS)
    assert place.run(TPU, "delete", *WHERE, *TYPE).code == 0
    assert not place.left()
    assert place.run(TPU, "delete", *WHERE, *TYPE).code == 0
