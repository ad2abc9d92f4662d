# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepalign_jax.base.errors import UserError
from stepalign_jax.grading import values
from stepalign_jax.grading import worker as grading_worker
from stepalign_jax.grading.answers import extract_answer
from stepalign_jax.grading.grader import JOBS_PER_WORKER, NO_ANSWER, Grader, describe_unparsable
from stepalign_jax.grading.normalise import normalize
from stepalign_jax.grading.pool import CRASH, TIMEOUT, WorkerPool

ROOT = Path(__file__).resolve().parents[2]
TAG = r"<answer>([\s\S]*?)</answer>"
ENDLESS = "9^{9^{9^{9}}}"


@pytest.fixture(scope="module")
def grader():
    with Grader(deadline_secs=30.0, num_workers=1) as shared:
        yield shared


def is_alive(pid: int) -> bool:
    """False too for a zombie that only the system's first process can reap."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_until_gone(pids: list[int], secs: float = 20.0) -> bool:
    limit = time.monotonic() + secs
    while any(is_alive(pid) for pid in pids) and time.monotonic() < limit:
        time.sleep(0.05)
    return not any(is_alive(pid) for pid in pids)


# --- extract_answer ---


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 7 </answer>", "7"),
        ("<answer>7</answer> no: <answer>8</answer>", "8"),
        (r"<answer>7</answer> so \boxed{8}", "7"),
        (r"<answer>  </answer> \boxed{8}", "8"),
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{3} and then cut off: \boxed{\frac{1}{2", None),
        (r"\boxed{\frac{1}{2} and then \boxed{3}", "3"),
        ("<answer>\n\\boxed{4</answer>", None),
        (r"so \boxed 5.", "5"),
        (r"so \boxed5, or \boxed{6", None),
        (r"so \boxed\frac12", r"\frac12"),
        (r"so \fbox{5}", "5"),
        (r"<think>Try 6+6, so \boxed{12}? No, that misses", None),
        ("<think>I could write <answer>12</answer>, but", None),
        (r"<think>\boxed{12}?</think> It is \boxed{13}", "13"),
        (r"\boxed{12}? No.</think> I give up", None),
        ("<think>no</think><answer>7</answer>", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \mid x > 0 \right.}", r"\left\{ x \mid x > 0 \right."),
        (r"the set { of all \boxed {4}", "4"),
        (r"\boxed{5} goes into \boxed{}", "5"),
        ("no answer", None),
        ("", None),
        ("<answer>7", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text, TAG) == answer


pieces = st.sampled_from(["\\boxed{", "\\boxed", "{", "}", "\\{", "\\}", "\\", "<answer>", "7"])


@settings(deadline=None)
@given(st.lists(pieces | st.text(max_size=3)).map("".join))
def test_extract_answer_never_raises_and_is_stripped(text):
    answer = extract_answer(text, TAG)
    assert answer is None or (answer and answer == answer.strip() and answer in text)


nested = st.recursive(
    st.text("ab1+ ", min_size=1), lambda inner: inner.map(lambda text: f"f{{{text}}}g")
)


@settings(deadline=None)
@given(nested.filter(str.strip), st.text("ab{ "))
def test_extract_answer_finds_any_balanced_box(content, before):
    text = f"{before}\\boxed{{{content}}} b"
    assert extract_answer(text, TAG) == content.strip()


def test_extract_answer_is_linear_in_unclosed_boxes():
    started = time.monotonic()
    assert extract_answer(r"\boxed{1}" + r"\boxed{" * 50_000, TAG) is None
    assert time.monotonic() - started < 5.0  # quadratic time would take minutes


@pytest.mark.parametrize("pattern", ["Answer: .*", "Answer: ("])
def test_extract_answer_refuses_an_unusable_pattern(pattern):
    with pytest.raises(UserError, match="answer_pattern"):
        extract_answer("Answer: 7", pattern)


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        (" 7 ", "7"),
        ("$$7$$", "7"),
        (r"\( x \)", "x"),
        (r"\[\boxed{$x  + 1$}\]", "x+1"),
        ("$1$ or $2$", "1, 2"),
        (r"**\(1\,234.50\)**.", "1234.50"),
        (r"\boxed{1} \boxed{2}", r"\boxed{1}\boxed{2}"),
        ("$", "$"),
    ],
)
def test_normalize(answer, plain):
    assert normalize(answer) == plain


# --- verdicts ---


integers = st.integers(-(10**15) + 1, 10**15 - 1)
spellings = st.sampled_from(["{}", "{:+}", "{:04}"])


@settings(max_examples=60, deadline=None)
@given(integers, integers | st.integers(-3, 3), st.booleans(), spellings)
def test_integer_shortcut_is_the_workers_verdict(a, b, same, spelling):
    gold, answer = str(a), spelling.format(a if same else b)
    grader = Grader(deadline_secs=1.0, num_workers=1)
    verdict = grader.grade([answer], [gold])[0]
    assert grader.process_ids == []  # so it was the shortcut
    # The workers' reading is the same.
    assert verdict == values.same(gold, answer) == (int(gold) == int(answer))


def test_text_alone_starts_no_worker():
    grader = Grader(deadline_secs=1.0, num_workers=1)
    answers = [None, "", "7", "$7$", "07", "8", "no idea"]
    golds = ["7", "", "7", "7", "7", "7", "no idea"]
    expected = [False, False, True, True, True, False, True]
    assert grader.grade(answers, golds) == expected
    assert grader.process_ids == []


def test_grade_wants_one_gold_per_answer():
    with pytest.raises(ValueError):
        Grader(deadline_secs=1.0, num_workers=1).grade(["1", "2"], ["1"])


def test_unparsable_gold_is_right_for_an_equal_string_only():
    with Grader(deadline_secs=30.0, num_workers=1) as grader:
        gold = "2^floor(n/2)*floor(n/2)!"
        assert grader.grade(["7", "2", gold, "x"], [gold] * 4) == [False, False, True, False]
        assert grader.counts() == (1, 0, 0)
        grader.close()
        assert grader.grade(["8"], [gold]) == [False]
        assert grader.counts().unparsable_golds == 1


def test_golds_that_cannot_be_read_are_found(grader):
    golds = ["7", "No", r"\frac12", "x+", "(1,2]", "n+1 for all p", "x+", r"1\,000", "A"]
    found = grader.unparsable(golds)
    assert found == ["x+", "n+1 for all p"]
    line = describe_unparsable(found, 9)
    assert line.startswith("2 of 9 expected answers") and "'x+', 'n+1 for all p'" in line


def test_failures_are_taken_once(grader):
    with Grader(deadline_secs=1.0, num_workers=1) as grader:
        assert grader.grade([ENDLESS], [r"\sqrt{2}"]) == [False]
        assert grader.take_failures() == {"grading_timeouts": 1, "grading_crashes": 0}
        assert grader.take_failures() == {"grading_timeouts": 0, "grading_crashes": 0}
        assert grader.counts().timeouts == 1


def test_endless_answers_cost_a_deadline_each_not_one_per_pair():
    endless = [f"{base}^{{9^{{9^{{9}}}}}}" for base in (5, 6, 7)]
    answers = ["0.5", endless[0], r"\sqrt{2}", endless[1], endless[2], r"\frac{2}{\sqrt2}"]
    with Grader(deadline_secs=2.0, num_workers=1) as grader:
        assert grader.equivalence_classes(answers) == [0, 1, 2, 3, 4, 2]
        assert grader.counts().timeouts == 3
        # Nor does any of them cost another one as a gold answer.
        assert grader.grade([r"\sqrt{2}", endless[1]], [endless[0], endless[2]]) == [
            False,
            False,
        ]
        assert grader.counts().timeouts == 3


def test_verdicts_are_remembered():
    with Grader(deadline_secs=30.0, num_workers=1) as grader:
        assert grader.grade(["2^{1/2}"], [r"\sqrt{2}"]) == [True]
        grader.close()
        again = grader.grade(["2^{1/2}", "$2^{1/2}$"], [r"\sqrt{2}", r" \sqrt2"])
        assert again == [True, True]
        assert grader.process_ids == []


def test_equivalence_classes(grader):
    answers = ["1/2", None, "0.5", "3", "", r"\frac12", "3.0", "x", "1/2"]
    expected = [0, NO_ANSWER, 0, 1, NO_ANSWER, 0, 1, 2, 0]
    assert grader.equivalence_classes(answers) == expected
    assert grader.equivalence_classes([None, None]) == [NO_ANSWER, NO_ANSWER]
    assert grader.equivalence_classes([]) == []


# --- processes ---


def test_endless_answer_is_killed_and_the_others_are_graded():
    answers = ["0.5", ENDLESS, "2/4", "0.25"]
    with Grader(deadline_secs=2.0, num_workers=2) as grader:
        started = time.monotonic()
        assert grader.grade(answers, ["1/2"] * 4) == [True, False, True, False]
        assert time.monotonic() - started < 60.0
        assert grader.counts().timeouts == 1
        assert grader.grade([ENDLESS, "3/6"], ["1/2", "1/2"]) == [False, True]
        assert grader.counts().timeouts == 1  # remembered, so not waited for again
        pids = grader.process_ids
        assert pids
    assert grader.process_ids == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):  # a zombie would still have an entry
            os.kill(pid, 0)


def test_killed_idle_workers_are_replaced():
    with Grader(deadline_secs=30.0, num_workers=1) as grader:
        assert grader.grade(["2^{1/2}"], [r"\sqrt{2}"]) == [True]
        (pid,) = grader.process_ids
        os.kill(pid, signal.SIGKILL)
        assert grader.grade(["3^{1/2}"], [r"\sqrt{3}"]) == [True]
        assert grader.process_ids != [pid]


def test_workers_need_neither_our_main_nor_jax_and_end_with_their_parent(tmp_path):
    script = tmp_path / "run.py"  # without a main guard: a second import would print again
    script.write_text(
        "import os, sys\n"
        "from stepalign_jax.grading.grader import Grader\n"
        "grader = Grader(deadline_secs=30.0, num_workers=1)\n"
        "assert grader.grade(['2^(1/2)'], ['sqrt(2)']) == [True]\n"
        "loaded = {'jax', 'sympy', 'math_verify'} & set(sys.modules)\n"
        "print(loaded or 'nothing', *grader.process_ids, flush=True)\n"
        "os._exit(0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    loaded, *pids = run.stdout.split()
    assert loaded == "nothing"
    assert len(pids) == 1 and wait_until_gone([int(pid) for pid in pids])


def test_worker_file_runs_without_jax():
    code = (
        "import runpy, sys\n"
        f"sys.path.append({str(ROOT)!r})\n"
        f"worker = runpy.run_path({str(grading_worker.__file__)!r}, run_name='worker')\n"
        "assert worker['judge']('grade', '1/2', '0.5') == 'equal'\n"
        "assert 'sympy' in sys.modules\n"
        "assert 'jax' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd="/"
    )
    assert run.returncode == 0, run.stderr


FAKE_WORKER = """
import json, os, pathlib, signal, sys, time
print(json.dumps({"error": None}), flush=True)
for line in sys.stdin:
    kind, gold, answer, deadline = json.loads(line)
    if kind == "die":
        os._exit(1)
    if kind == "die once" and not pathlib.Path(gold).exists():
        pathlib.Path(gold).touch()
        os._exit(1)
    if kind == "ignore SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
    print(json.dumps(str(os.getpid())), flush=True)
"""


@pytest.fixture
def make_pool(tmp_path):
    """Makes a pool of workers that behave as each request asks; a verdict is their pid."""
    script = tmp_path / "fake_worker.py"
    script.write_text(FAKE_WORKER)
    pools = []

    def make(*, num_workers=1, deadline_secs=30.0, jobs_per_worker=JOBS_PER_WORKER):
        pools.append(
            WorkerPool(
                [sys.executable, "-S", str(script)],
                num_workers=num_workers,
                deadline_secs=deadline_secs,
                jobs_per_worker=jobs_per_worker,
            )
        )
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def test_job_whose_worker_dies_is_tried_once_more(make_pool, tmp_path):
    pool = make_pool()
    verdicts = pool.run([("die once", str(tmp_path / "died"), ""), ("", "", "")])
    assert CRASH not in verdicts
    assert pool.num_crashes == 1


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_killed_as_it_starts_is_replaced_once(num_workers, tmp_path):
    """As the kernel kills where memory is short: each place once, also at a later start."""
    places = [f"{tmp_path}/{n}" for n in range(num_workers)]
    killed = f"""
import os, signal
for place in {places}:
    try:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        continue
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with contextlib.closing(
        WorkerPool(
            [sys.executable, "-S", "-c", killed + FAKE_WORKER],
            num_workers=num_workers,
            deadline_secs=30.0,
            jobs_per_worker=1,
        )
    ) as pool:
        for _ in range(2):
            verdicts = pool.run([("", "", "")] * 3)
            assert CRASH not in verdicts and pool.num_crashes == 0
            for place in places:
                os.unlink(place)


def test_job_that_kills_every_worker_is_given_up(make_pool):
    pool = make_pool(num_workers=2)
    verdicts = pool.run([("", "", ""), ("die", "", ""), ("", "", "")])
    assert [verdict == CRASH for verdict in verdicts] == [False, True, False]
    assert pool.num_crashes == 2


def test_overrun_worker_that_ignores_sigterm_is_killed(make_pool):
    pool = make_pool(deadline_secs=1.0)
    (pid,) = pool.run([("", "", "")])
    assert pool.run([("ignore SIGTERM", "", "")]) == [TIMEOUT]
    assert not is_alive(int(pid))


def test_workers_are_recycled(make_pool):
    pids = make_pool(jobs_per_worker=2).run([("", "", "")] * 5)
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 1]


def test_interrupt_stops_all_workers(make_pool):
    pool = make_pool(deadline_secs=60.0)
    (pid,) = pool.run([("", "", "")])
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            pool.run([("ignore SIGTERM", "", "")])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert pool.process_ids == [] and not is_alive(int(pid))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(3)", "the last with status 3: free some memory"),
        ("import os; os.kill(os.getpid(), 9)", "the last by SIGKILL: free some memory"),
        ("""print('{"error": "no math_verify"}')""", "(no math_verify): install this package"),
    ],
)
def test_workers_that_cannot_start_end_the_command_with_a_sentence(code, reason):
    pool = WorkerPool(
        [sys.executable, "-S", "-c", code],
        num_workers=2,
        deadline_secs=1.0,
        jobs_per_worker=JOBS_PER_WORKER,
    )
    with pytest.raises(UserError, match=re.escape(reason)):
        pool.run([("", "", "")])
    assert pool.process_ids == []
