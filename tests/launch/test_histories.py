# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""launch/tpu.sh through random histories of a cloud that fails in every way we know of."""

import itertools
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from support.launching import Ended, Place, printed_commands

WHERE = ("--project=my-project", "--zone=my-zone")
KILLED = -9
STOPS = ("INT", "TERM", "HUP", "KILL")
EVENTS = (
    *("ok", "ok", "ok", "stall", "odd", "refuse", "lost", "late", "mangled"),
    *("preempt", "suspend", "vanish", "fail", "exit0", "exit1", "exit75"),
)
TYPE = "v5litepod-8"
BEGINNINGS = {
    "nothing": {},
    "waiting": {"request": "WAITING_FOR_RESOURCES", "label": "launched", "type": TYPE},
    "suspended": {"request": "SUSPENDED", "label": "launched", "type": TYPE},
    "ready": {
        "request": "ACTIVE", "vm": "READY", "label": "launched", "type": TYPE, "disk": "fresh"
    },
    "another's": {"vm": "READY", "type": TYPE, "disk": "fresh"},
    "another's, by a request": {
        "request": "ACTIVE", "vm": "READY", "type": TYPE, "disk": "fresh"
    },
    "another's, lost": {"request": "SUSPENDED", "type": TYPE},
}  # fmt: skip

# Calls are many and events few: runs of calm lead to where a rare event meets a rare state.
calm = st.integers(0, 12).map(lambda n: ["ok"] * n)
trouble = st.lists(st.sampled_from(EVENTS), max_size=4)
flood = st.integers(10, 25).flatmap(
    lambda n: st.sampled_from(("refuse", "odd")).map(lambda e: [e] * n)
)
part = st.one_of(calm, trouble, trouble, st.sampled_from(STOPS).map(lambda stop: [stop]), flood)
histories = st.lists(part, max_size=8).map(lambda parts: list(itertools.chain(*parts)))


def check_nothing_leaks(place: Place, ended: Ended) -> None:
    """What is left is named at the end, with the commands that delete it; and these work."""
    with place.another_future() as later:
        for _ in range(4):  # what comes late comes
            later.run("gcloud", *["compute", "tpus", "tpu-vm", "describe", "mine"], *WHERE)
        if not later.left():
            return
        commands = printed_commands(ended.err)
        assert commands, f"left without a word: {later.state()}"
        if ended.code != KILLED:
            assert ended.err.rstrip().splitlines()[-1].startswith("  gcloud ")
        later.events(["stall"] * len(commands))
        for command in commands:
            later.run(*command)
        assert not later.left(), (later.state(), commands)


def check_resumed_from_what_was_fetched(place: Place) -> None:
    """No training starts behind the results that are here."""
    fetched = 0
    for line in place.lines("trained"):
        what, count = line.split()
        fetched = max(fetched, int(count)) if what == "fetched" else fetched
        assert what == "fetched" or int(count) >= fetched, place.lines("trained")


def live(beginning: str, events: list[str]) -> None:
    adopted = beginning.startswith("another's")
    with tempfile.TemporaryDirectory() as directory:
        place = Place(Path(directory))
        place.begin(events, **BEGINNINGS[beginning])
        ended = place.train()
        assert ended.code in (0, 1, 2, 75, KILLED), ended.err
        check_nothing_leaks(place, ended)
        if ended.code == 0:
            assert (place.results / "progress").exists()
            assert place.state()["train"] == "0" or not place.left()
        if adopted:
            assert "deleted what was there before" not in place.lines("trained")
            check = place.state()
            if ended.code == 0 and check.get("label") == "":
                assert place.left() or "vanish" in events or "suspend" in events
        elif ended.code in (0, 1):
            # Done or hopeless: what was made here is deleted, unless a call stayed unclear.
            assert not place.left() or "may be there" in ended.err or "is seen in" in ended.err
        place.events([])
        again = place.train()
        theirs = adopted and place.state().get("label") == "" and place.left()
        if theirs and again.code == 2:
            assert "was not made here" in again.err
        else:
            assert again.code == 0, again.err
            progress = (place.results / "progress").read_text().strip()
            assert progress == "3" or "exit0" in events
            assert place.left() == theirs
        if not {"KILL", "TERM", "INT", "HUP", "mangled", "lost"} & set(events):
            check_resumed_from_what_was_fetched(place)
        calls = len(place.lines("calls"))
        third = place.train()
        assert third.code == again.code
        assert not any(" create " in line for line in place.lines("calls")[calls:])


def checked(number: int):
    return settings(
        max_examples=number, suppress_health_check=[HealthCheck.too_slow], print_blob=True
    )


@pytest.mark.long
@pytest.mark.timeout(900)
@checked(40)
@given(st.sampled_from(sorted(BEGINNINGS)), histories)
def test_no_history_leaks_and_the_same_command_goes_on(beginning, events):
    live(beginning, events)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@checked(1000)
@given(st.sampled_from(sorted(BEGINNINGS)), histories)
def test_no_history_of_a_thousand_leaks(beginning, events):
    live(beginning, events)
