# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.problems.jsonl import read_problems
from stepalign_jax.problems.problem import Problem, Scored

GOOD = '{"problem": "1+1", "answer": "2"}'


def test_read_problems(tmp_path):
    path = tmp_path / "test.jsonl"
    records = [
        {"problem": "1+1", "answer": "2", "reference": "so 1+1 gives 2", "id": 7},
        {"problem": "a\u2028b ½", "answer": "x", "reference": None},  # no line end for JSON
        {"problem": "2+2", "answer": "4"},
    ]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join([lines[0], "", lines[1], lines[2], ""]), encoding="utf-8")
    assert read_problems(path) == [
        Problem("1+1", "2", "so 1+1 gives 2", "jsonl"),
        Problem("a\u2028b ½", "x", None, "jsonl"),
        Problem("2+2", "4", None, "jsonl"),
    ]


def test_a_scorer_is_read_whole_and_in_one_spelling(tmp_path):
    path = tmp_path / "test.jsonl"
    entry = {"question": "Sort.", "answer": "a, b", "metadata": {"x": 1}}
    lines = [
        {"problem": "Sort.", "answer": "a, b", "scorer": {"task": "sorting", "entry": entry}},
        {"problem": "Sort!", "answer": "a, b", "scorer": {"entry": entry, "task": "sorting"}},
        {"problem": "1+1", "answer": "2", "scorer": None},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    first, second, plain = read_problems(path)
    assert first.scorer == second.scorer and plain.scorer is None
    assert json.loads(first.scorer) == {"task": "sorting", "entry": entry}
    assert first.expected == Scored("a, b", first.scorer)
    assert plain.expected == "2"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path, encoding):
    path = tmp_path / "test.jsonl"
    path.write_bytes(f"{GOOD}\r\n{GOOD}\r\n".encode(encoding))
    assert read_problems(str(path)) == [Problem("1+1", "2", None, "jsonl")] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n  \n", "is empty"),
        (f"{GOOD}\n\n{{'problem'".encode(), "line 3 is not JSON"),
        (b"[" * 100_000, "line 1 is not JSON"),
        (f"{GOOD}\n[1]".encode(), "line 2 is not a JSON object"),
        (b'{"problem": "1+1"}', "line 1 has no key 'answer'"),
        (b'{"answer": "2"}', "line 1 has no key 'problem'"),
        (b'{"problem": "1+1", "answer": 2}', "line 1: 'answer' must be a string, not 2"),
        (b'{"problem": "1+1", "answer": null}', "'answer' must be a string, not null"),
        (b'{"problem": "1+1", "answer": " "}', "'answer' must not be blank"),
        (b'{"problem": "1", "answer": "2", "reference": [1]}', "'reference' must be a string"),
        (
            b'{"problem": "1", "answer": "2", "scorer": {"task": "x"}}',
            "'scorer' must be an obj",
        ),
        (b'{"problem": "1", "answer": "2", "scorer": "x"}', "'scorer' must be an object"),
        (b'{"problem": "\xff"}', "not UTF-8"),
        (b'{"problem": "x \\ud835 + 1", "answer": "2"}', "'problem' holds half a character"),
        (b'{"problem": "1", "answer": "\\udfff"}', "character ('\\udfff') at character 0"),
        (b'{"problem": "1", "answer": ' + b"9" * 5000 + b"}", "line 1 is not JSON (Exceeds"),
    ],
)
def test_read_problems_refuses(tmp_path, content, message):
    path = tmp_path / "test.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_problems(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_missing_file_and_directory_are_refused(tmp_path):
    with pytest.raises(UserError, match="no problem file"):
        read_problems(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match="cannot read"):
        read_problems(tmp_path)
