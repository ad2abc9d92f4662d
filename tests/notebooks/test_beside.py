# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What the notebooks share, without a kernel."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs import ROOT, small_config

from stepalign_jax.config.load import load_config

sys.path.insert(0, str(ROOT / "notebooks"))

import beside
import pictures

ROW = {
    "rollout": "Step 1: 2*3=<7\nAnswer: 7",
    "context": "Step 1: 2*3=6\nAnswer: 6",
    "ends": [8, 12, 14, 15, 23, 24, 24],
    "advantage": [0.0, 0.1, -2.0, 0.0, 0.0, -1.0, 0.5],
}


@pytest.fixture
def environment(monkeypatch, tmp_path) -> beside.Environment:
    monkeypatch.setenv("STEPALIGN_PYTHON", sys.executable)
    return beside.Environment(tmp_path)


def test_a_command_that_fails_shows_its_sentence_and_stops_the_cell(environment, capsys):
    with pytest.raises(RuntimeError, match=r"exit status 2: error: .* is not a run"):
        environment.run("report", "--run", "no such run")
    assert "is not a run" in capsys.readouterr().out


def test_a_command_has_a_terminal_and_nothing_of_the_kernel(environment, capsys, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://of_the_kernel")
    monkeypatch.setenv("PYTHONPATH", "/of/the/kernel")
    code = (
        "import os, sys; print(sys.stderr.isatty(), os.get_terminal_size().columns, "
        "sorted({'MPLBACKEND', 'PYTHONPATH'} & set(os.environ)), 'ü', end='')"
    )
    environment._follow([sys.executable, "-c", code])
    assert capsys.readouterr().out == "True 100 [] ü"


def test_a_given_interpreter_is_used_as_it_is(environment, capsys, tmp_path):
    environment.install("gym")
    assert environment.python == sys.executable and list(tmp_path.iterdir()) == []
    assert sys.executable in capsys.readouterr().out


def test_an_environment_is_made_once_and_again_where_the_requirements_change(
    monkeypatch, tmp_path
):
    """With the kernel's own pip, into an environment that has none."""
    monkeypatch.delenv("STEPALIGN_PYTHON", raising=False)
    monkeypatch.setenv("STEPALIGN_ENVIRONMENT", str(tmp_path / "beside"))
    clone, asked = tmp_path / "clone", []
    clone.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (clone / name).write_text("1")
    environment = beside.Environment(clone)
    monkeypatch.setattr(environment, "_follow", asked.append)
    monkeypatch.setattr(beside, "accelerator_extras", lambda: [])
    monkeypatch.setattr(beside.shutil, "which", lambda name: None)
    for changes in ("", "gym", "2"):
        if changes == "2":
            (clone / "constraints.txt").write_text("2")
        for _ in range(2):
            environment.install(*([changes] if changes == "gym" else []))
    assert [argv[-1] for argv in asked] == [str(clone), f"{clone}[gym]", str(clone)]
    python = tmp_path / "beside" / "bin" / "python"
    assert environment.python == str(python)
    assert asked[0][:6] == [sys.executable, "-m", "pip", "--python", str(python), "install"]
    has_pip = subprocess.run([python, "-m", "pip"], capture_output=True, check=False)
    assert has_pip.returncode == 1


def test_uv_installs_where_there_is_uv(monkeypatch, tmp_path):
    monkeypatch.delenv("STEPALIGN_PYTHON", raising=False)
    monkeypatch.setattr(beside.shutil, "which", lambda name: f"/bin/{name}")
    environment = beside.Environment(tmp_path)
    assert environment._installer()[:3] == ["/bin/uv", "pip", "install"]
    assert environment._installer()[-1] == environment.python


def test_a_row_that_is_being_written_is_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0}\n{"step": 1}\n{"st')
    assert beside.rows_of(file) == [{"step": 0}, {"step": 1}]


def test_tokens_are_cut_where_they_end():
    assert pictures.tokens_of(ROW) == ["Step 1: ", "2*3=", "<7", "\n", "Answer: ", "7", ""]


def test_heat_shows_each_token_with_its_number_and_no_markup_of_a_model():
    html = pictures.heat(ROW).data
    assert "&lt;7</span>" in html and "<7" not in html
    assert 'title="-2.000"' in html and html.count("<span") == 7
    assert "lowest -2.00 at token 2 (&#x27;&lt;7&#x27;)" in html and ">[end]<" in html


def test_trace_has_a_bar_per_token_and_a_line_per_reasoning_step():
    html = pictures.trace(ROW, r"Step \d+: ").data
    assert html.count("<rect") == 7 and html.count("stroke-dasharray") == 1
    assert "Step 1:</text>" in html and 'role="img" aria-label="Advantage of 7' in html


def test_a_critique_stands_beside_its_rollout_with_what_differs_marked():
    html = pictures.side_by_side("same\nwrong", "same\nright\nmore").data
    assert html.count("<tr>") == 4 and html.count("background") == 4
    assert "same</td>" in html and "&lt;" not in html


def test_the_report_is_shown_in_a_frame_that_reaches_nothing(tmp_path):
    page = tmp_path / "report" / "report.html"
    page.parent.mkdir()
    page.write_text('<p title="a">&amp;</p>')
    html = pictures.report(tmp_path).data
    assert 'srcdoc="&lt;p title=&quot;a&quot;&gt;&amp;amp;&lt;/p&gt;"' in html
    assert 'sandbox="allow-scripts"' in html


def test_figures_are_those_of_the_report(tmp_path):
    from report.test_figures import make_run

    from stepalign_jax.report.figures import run_figures

    run = make_run(tmp_path)
    drawn = run_figures(run)
    page = "<html>" + "".join(f"<div>{figure.svg}</div>" for figure in drawn) + "<svg></svg>"
    (run.report).mkdir()
    (run.report / "report.html").write_text(page)
    shown = pictures.figures(tmp_path).data
    assert all(figure.svg in shown for figure in drawn)
    one = pictures.figures(tmp_path, "loss").data
    assert one.count("<svg") == 1 and 'id="loss-figure_1"' in one
    with pytest.raises(KeyError, match="nothing: the run has validation"):
        pictures.figures(tmp_path, "nothing")


def test_a_reduced_run_shares_its_programs_with_the_tests_own_runs(tmp_path):
    assert load_config("tiny", beside._SECONDS) == small_config(Path("runs"))


@pytest.mark.parametrize("hangup", ["SIG_DFL", "SIG_IGN"])  # the second under nohup
def test_a_command_ends_with_its_kernel(hangup):
    """The terminal hangs up, and nothing of a notebook runs on unseen."""
    code = f"""
import os, signal, sys, threading, time
signal.signal(signal.SIGHUP, signal.{hangup})
sys.path.insert(0, {str(ROOT / "notebooks")!r})
import beside, pathlib
child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
run = lambda: beside.Environment(pathlib.Path("."))._follow([sys.executable, "-c", child])
threading.Thread(target=run, daemon=True).start()
time.sleep(600)
"""
    kernel = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert kernel.stdout is not None
    child = Path("/proc") / kernel.stdout.readline().strip()
    assert runs(child)
    kernel.kill()
    kernel.wait()
    ends = time.monotonic() + 60
    while runs(child) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not runs(child)


def runs(process: Path) -> bool:
    """Whether it has not ended; one that did may wait for the machine's init to see it."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_without_a_network_no_model_is_reachable(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not beside.is_reachable("Qwen/Qwen3-0.6B")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not beside.is_reachable("Qwen/Qwen3-0.6B")
