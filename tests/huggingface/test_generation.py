# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""generation_config.json: what it says, what it cannot say, and what is not followed."""

import json
from pathlib import Path
from typing import Any

import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.huggingface.generation import read_generation_settings


def read(directory: Path, content: Any) -> Any:
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / "generation_config.json").write_text(text)
    return read_generation_settings(directory)


def test_a_directory_without_the_file_says_nothing(tmp_path):
    found = read_generation_settings(tmp_path)
    assert found.stop_ids is None and not found.do_sample and not found.not_followed


@pytest.mark.parametrize(("eos", "ids"), [(7, (7,)), ([7, 9], (7, 9)), (None, None), (0, (0,))])
def test_stop_ids(tmp_path, eos, ids):
    assert read(tmp_path, {"eos_token_id": eos}).stop_ids == ids


@pytest.mark.parametrize(
    "content", ['{"eos_token_id": 1,}', "[]", "", "version 1", "[" * 10**5]
)
def test_what_is_no_object_is_refused(tmp_path, content):
    with pytest.raises(UserError, match=r"generation_config\.json (is not JSON|holds no JSON)"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "eos", [[], [1, None], [[1]], "1", True, -1, 1.0, {"id": 1}, [True], 2**31]
)
def test_what_is_no_token_id_is_refused(tmp_path, eos):
    with pytest.raises(UserError, match=r"eos_token_id = .*: it must be a token id"):
        read(tmp_path, {"eos_token_id": eos})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("temperature", x) for x in (-1, "hot", True, [1], 10**400)),
        *(("top_k", x) for x in (-1, 2.5, "many", True, 2**31)),
        *(("top_p", x) for x in (0, 1.1, "all", 10**400)),
        *(("max_new_tokens", x) for x in (0, -5, 1.5, "long")),
        ("do_sample", "yes"),
    ],
)
def test_impossible_settings_are_refused_by_file_and_key(tmp_path, key, value):
    with pytest.raises(UserError, match=rf"generation_config\.json has {key} = "):
        read(tmp_path, {key: value})
    with pytest.raises(UserError, match="temperature = nan"):
        read(tmp_path, '{"temperature": NaN}')


def test_keys_that_transformers_would_act_on_are_named_and_no_others(tmp_path):
    neutral = {
        **{"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "min_p": None},
        **{"suppress_tokens": [], "typical_p": 1.0, "pad_token_id": 3, "use_cache": True},
        **{"transformers_version": "5.0", "temperature": 0.6, "max_new_tokens": 5},
        "max_length": 20,
    }
    assert read(tmp_path, neutral).not_followed == ()
    acting = {"repetition_penalty": 1.05, "min_p": 0.1, "suppress_tokens": [5], "news": "x"}
    found = read(tmp_path, neutral | acting)
    assert found.not_followed == (
        *("repetition_penalty=1.05", "min_p=0.1", "suppress_tokens=[5]", "news='x'"),
    )
    assert str(found).startswith("generation_config.json asks for repetition_penalty=1.05, min")


def test_what_is_named_stays_on_a_line_of_reasonable_length(tmp_path):
    asked = {"suppress_tokens": list(range(999)), "stop_strings": ["a\nb"]}
    named = str(read(tmp_path, asked))
    assert "suppress_tokens=[0, 1, 2" in named and "stop_strings=" in named
    assert "\n" not in named and len(named) < 120
    with pytest.raises(UserError) as refusal:
        read(tmp_path, {"eos_token_id": ["a\nb"] * 999})
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 150 + len(str(tmp_path))
