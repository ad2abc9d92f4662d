# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The command that streams an answer, on the packaged checkpoint."""

import argparse
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.runs import refusal

from stepalign_jax import generate
from stepalign_jax.base.errors import UserError
from stepalign_jax.generate import main, sampling_for
from stepalign_jax.huggingface.config import read_sizes
from stepalign_jax.huggingface.generation import GenerationSettings, read_generation_settings
from stepalign_jax.huggingface.hub import resolve_checkpoint
from stepalign_jax.huggingface.text_stream import TextStream
from stepalign_jax.huggingface.tokenizer import load_tokenizer, render_prompt

TINY = resolve_checkpoint("packaged:tiny")
POSITIONS = read_sizes(TINY).max_positions


class ByteTokenizer:
    """One token per UTF-8 byte, decoded as byte-level tokenizers decode."""

    def __init__(self) -> None:
        self.added_tokens_decoder: dict[int, Any] = {}
        self.all_special_ids: list[int] = []

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_stream_never_shows_half_a_character(size):
    text = "naïve 😀 → 数学 " * 20 + "é"
    ids, stream = list(text.encode()), TextStream(ByteTokenizer())
    pieces = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == text


def test_a_stream_that_is_cut_shows_what_there_is():
    stream = TextStream(ByteTokenizer())
    assert stream.push(list("a😀".encode())[:3]) == "a"
    assert stream.finish() == "\ufffd"


def test_the_answer_goes_to_stdout_and_the_rest_to_stderr(capsys):
    main(["--model", "packaged:tiny", "--prompt", "12 + 34 - 5", "--max-new-tokens", "30"])
    out, err = capsys.readouterr()
    assert out.startswith("Step 1: ") and "tokens/s" not in out
    assert err.startswith("greedy; cpu, float32")
    assert "prompt tokens" in err and "tokens/s after the first" in err


def test_the_rate_is_of_the_tokens_after_the_first():
    arrivals = [(1, 0.25), (9, 1.0), (21, 5.25)]  # tokens so far, seconds since the start
    assert generate._report(17, arrivals, 2.5) == (
        "17 prompt tokens, first token after 0.25 s; 21 new tokens, 4.0 tokens/s after the "
        "first (compilation, 2.5 s, not counted)"
    )
    alone = generate._report(17, [(1, 0.25)], 0.0)
    assert "1 new tokens, no rate after the first" in alone


def test_seconds_of_compilation_do_not_count(monkeypatch, capsys):
    """Each look at the clock is a second later, and each chunk compiles for half of one."""
    seconds = iter(range(100))
    clock = SimpleNamespace(perf_counter=lambda: next(seconds))
    monkeypatch.setattr(generate, "time", clock)
    half = {"compile_seconds": 0.5}
    monkeypatch.setattr(generate.CompilationCounter, "take", lambda _: half)
    reported: list[Any] = []
    monkeypatch.setattr(generate, "_report", lambda *found: reported.append(found) or "")
    main(["--model", "packaged:tiny", "--prompt", "1 + 2 - 3", "--max-new-tokens", "17"])
    ((prompt_length, arrivals, compile_seconds),) = reported
    tokenizer = load_tokenizer(TINY)
    assert prompt_length == len(render_prompt(tokenizer, "1 + 2 - 3", thinking=False))
    assert [count for count, _ in arrivals] == [1, 9, 17]
    assert [moment for _, moment in arrivals] == [0.5, 1.0, 1.5]
    assert compile_seconds == 1.5


def options(**changes: Any) -> argparse.Namespace:
    unset = dict(temperature=None, top_k=None, top_p=None, max_new_tokens=None, seed=0)
    return argparse.Namespace(**{**unset, **changes})


def settings(directory: Path, **stored: Any) -> GenerationSettings:
    (directory / "generation_config.json").write_text(json.dumps(stored))
    return read_generation_settings(directory)


def test_options_come_before_the_checkpoint_and_that_before_greedy(tmp_path: Path):
    none = read_generation_settings(tmp_path)
    assert sampling_for(options(), none, POSITIONS, 10).temperature == 0
    assert sampling_for(options(top_p=0.5), none, POSITIONS, 10).temperature == 1
    assert sampling_for(options(), none, 4096, 10).max_new_tokens == 512
    stored = settings(
        tmp_path, do_sample=True, temperature=0.6, top_k=20, top_p=0.95, max_new_tokens=9
    )
    found = sampling_for(options(top_k=5), stored, POSITIONS, 10)
    assert (found.temperature, found.top_k, found.top_p) == (0.6, 5, 0.95)
    assert found.max_new_tokens == 9
    assert sampling_for(options(temperature=0.0), stored, POSITIONS, 10).temperature == 0
    room = sampling_for(options(max_new_tokens=10**6), stored, POSITIONS, 10).max_new_tokens
    assert room == POSITIONS - 10
    with pytest.raises(UserError, match="positions: shorten it"):
        sampling_for(options(), stored, POSITIONS, POSITIONS)


def test_a_file_that_samples_without_a_top_k_means_transformers_own(tmp_path: Path):
    stored = settings(tmp_path, do_sample=True, temperature=0.6, top_p=0.95)
    assert sampling_for(options(), stored, POSITIONS, 10).top_k == 50
    assert sampling_for(options(top_k=0), stored, POSITIONS, 10).top_k == 0
    greedy = settings(tmp_path, temperature=0.6, top_k=3)
    assert sampling_for(options(), greedy, POSITIONS, 10).temperature == 0


def test_what_the_checkpoint_asks_for_and_is_not_done_is_named(tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    settings(model, eos_token_id=1, repetition_penalty=1.05, no_repeat_ngram_size=0)
    main(["--model", str(model), "--prompt", "-5+3*8", "--max-new-tokens", "5"])
    out, err = capsys.readouterr()
    assert "generation_config.json asks for repetition_penalty=1.05, which is not" in err
    assert "no_repeat" not in err
    assert out.startswith("Step 1: ") and out.endswith("\n")


def test_the_statistics_stand_on_a_line_of_their_own(monkeypatch):
    written: list[str] = []
    terminal = SimpleNamespace(write=written.append, flush=lambda: None)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    main(["--model", "packaged:tiny", "--prompt", "12+34-5", "--max-new-tokens", "9"])
    last = "".join(written).splitlines()[-1]
    assert re.match(r"\d+ prompt tokens, first token after", last)


def test_a_prompt_that_is_no_unicode_is_refused(monkeypatch, capsys):
    argv = ["--model", "packaged:tiny", "--prompt", "1 + \udce9"]
    assert "--prompt is no Unicode text at character 4" in refusal(
        main, argv, monkeypatch, capsys
    )


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--temperature=-1", "--temperature is -1.0, but it must be at least 0"),
        ("--top-p=0", "--top-p is 0.0, but it must be in (0, 1]"),
        ("--max-new-tokens=0", "--max-new-tokens is 0"),
        ("--seed=-1", "--seed is -1"),
        ("--model=packaged:none", "packaged:none is not in this package"),
    ],
)
def test_impossible_options_are_refused_in_a_sentence(option, named, monkeypatch, capsys):
    argv = ["--model", "packaged:tiny", "--prompt", "1 + 1", option]
    assert named in refusal(main, argv, monkeypatch, capsys)
