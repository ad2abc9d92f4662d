# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Problems that a task of reasoning_gym generates, by its name and a seed.

    gsm_symbolic    word problems from 85 templates, with worked solutions; judged by value
    any other task  judged by its own scorer, which the rows carry; by value where the task has
                    none and its answers are numbers

gsm_symbolic has a scorer, which takes the first number of an answer: "$1,200" is 1 by it.
"""

import dataclasses
import importlib
import importlib.metadata
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.hashing import stable_hash32
from stepalign_jax.base.names import nearest
from stepalign_jax.base.text import surrogate_at
from stepalign_jax.grading.spelling import rational
from stepalign_jax.grading.tasks import PACKAGE
from stepalign_jax.preparing.records import FieldError
from stepalign_jax.preparing.rows import BadRow, Row, Source
from stepalign_jax.preparing.write import SplitRule, split_of

WORD_PROBLEMS = "gsm_symbolic"
# It asks for a bare result, where a config's prompt asks for a trace.
_INSTRUCTION = " Give the result as your final answer. Do not include units."
_LAST_LINE = re.compile(r"\n#### (.*)\Z")
_NO_ANSWER = "(no answer)"  # right only by a scorer that calls everything right
_PEEKED = 20  # problems that say how answers are judged
_TRIED = 4  # problems that are looked at before all are generated
_SPARE = 1.1  # some questions come twice
LICENCE = "Apache-2.0 (reasoning_gym)"
WORD_PROBLEMS_LICENCE = (
    f"{LICENCE}; its templates follow apple/GSM-Symbolic, which is CC-BY-NC-ND-4.0"
)


class Task(NamedTuple):
    """What is generated.

    Attributes:
      name: of the data set in the package.
      seed: of its draws.
      options: its settings that are not its own defaults.
      held_out_templates: how many templates are kept for the test; 0: none.
    """

    name: str
    seed: int
    options: Mapping[str, Any]
    held_out_templates: int


def parse_options(pairs: Collection[str]) -> dict[str, Any]:
    """Reads `key=value` settings; a value is JSON, or else a text.

    Raises:
      UserError: a pair has no `=`, or sets what another option of the command sets.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise UserError(f"--set {pair}: write key=value")
        if key in ("seed", "size"):
            raise UserError(f"--set {pair}: the command sets it, by --seed and --num-train")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def gym_source(task: Task, limits: Mapping[str, int | None], rule: SplitRule) -> Source:
    """As many problems of a task as fill the splits; fewer, if it has fewer different ones.

    Args:
      task: what is generated.
      limits: the problems of each split; None: what comes along.
      rule: the shares of the splits. With held-out templates the test set holds all of theirs
        and nothing else.

    Raises:
      UserError: the package is missing, the task or a setting is unknown, the task has no such
        templates, or its first problems cannot be used.
    """
    gym = _import()
    _check_names(gym, task)
    held_out = _held_out(gym, task)
    size = _size(limits, _shares(gym, task, rule, held_out))
    dataset = _create(gym, task, size)
    by_value = _is_judged_by_value(gym, task, dataset)

    def item(i: int) -> Row | BadRow:
        try:
            entry = dataset[i]
            if task.name == WORD_PROBLEMS:
                row = _word_problem(entry)
            else:
                row = _row(entry, None if by_value else task, dataset)
        except FieldError as error:
            return BadRow(task.name, i + 1, error.field, error.reason)
        except Exception as error:  # of a generator, over one of its problems
            return BadRow(task.name, i + 1, "", f"cannot be generated ({error!r:.80})")
        where = f"{task.name} seed {task.seed} index {i}"
        if not held_out:
            return row._replace(where=where)
        template = dataset.task_indices[i]
        split = "test"
        if template not in held_out:
            split = split_of(row.problem, SplitRule(rule.validation, 0.0))
        return row._replace(where=f"{where} template {template}", split=split)

    def read(_part: str, skip: int) -> Iterator[Row | BadRow]:
        yield from map(item, range(skip, size))

    _try_first(task, list(islice(read(task.name, 0), _TRIED)))
    return Source(
        name="gym",
        parts=(task.name,),
        read=read,
        filters=(),
        details={
            "task": task.name,
            "seed": task.seed,
            "options": dict(task.options),
            "held_out_templates": sorted(held_out),
            "generated": size,
            "judged_by": "value" if by_value else "scorer",
            "version": _version(gym),
        },
        licence=WORD_PROBLEMS_LICENCE if task.name == WORD_PROBLEMS else LICENCE,
    )


def _import() -> Any:
    try:
        return importlib.import_module(PACKAGE)  # seconds to import, and only used here
    except ImportError as error:
        raise UserError(
            f"--source gym needs the package {PACKAGE} ({error}): install it with "
            "pip install 'stepalign_jax[gym]'"
        ) from error


def _version(gym: Any) -> str:
    try:
        return importlib.metadata.version(PACKAGE)  # 0.1.25 calls itself 0.1.19
    except importlib.metadata.PackageNotFoundError:
        return gym.__version__


def _check_names(gym: Any, task: Task) -> None:
    tasks = gym.factory.DATASETS
    if task.name not in tasks:
        raise UserError(
            f"{PACKAGE} has no task {task.name!r}; the nearest is {nearest(task.name, tasks)!r}"
        )
    known = [field.name for field in dataclasses.fields(tasks[task.name][1])]
    for key in task.options:
        if key not in known:
            raise UserError(
                f"--set {key}: the task {task.name} has no such setting; the nearest is "
                f"{nearest(key, known)!r} of {', '.join(known)}"
            )


def _create(gym: Any, task: Task, size: int) -> Any:
    try:
        return gym.create_dataset(task.name, seed=task.seed, size=size, **task.options)
    except Exception as error:  # most often an assertion about a setting
        raise UserError(
            f"the task {task.name} refuses its settings ({error}): change them with --set"
        ) from error


def _held_out(gym: Any, task: Task) -> frozenset[int]:
    """Templates for the test alone: for every seed the same, and more of them hold fewer."""
    if not task.held_out_templates:
        return frozenset()
    if task.name != WORD_PROBLEMS:
        raise UserError(f"--held-out-templates: only {WORD_PROBLEMS} has templates")
    templates = _templates(gym, task)
    if not 0 < task.held_out_templates < len(templates):
        raise UserError(
            f"--held-out-templates is {task.held_out_templates}: give 0 to "
            f"{len(templates) - 1}, of {len(templates)} templates"
        )
    templates.sort(key=lambda template: stable_hash32(f"template {template}"))
    return frozenset(templates[: task.held_out_templates])


def _templates(gym: Any, task: Task) -> list[int]:
    return sorted(set(_create(gym, task, 10_000).task_indices))


def _shares(
    gym: Any, task: Task, rule: SplitRule, held_out: Collection[int]
) -> dict[str, float]:
    """The share of all generated problems that each split gets."""
    test = rule.test
    if held_out:
        test = len(held_out) / len(_templates(gym, task))
    validation = rule.validation * (1 - test) if held_out else rule.validation
    return {"train": 1 - validation - test, "validation": validation, "test": test}


def _size(limits: Mapping[str, int | None], shares: Mapping[str, float]) -> int:
    """How many problems fill each split, but for once in thousands of seeds."""
    sizes = [
        _SPARE * (limit + 4 * math.sqrt(limit)) / shares[split]
        for split, limit in limits.items()
        if limit and shares[split] > 0
    ]
    if not sizes or not limits["train"]:
        raise UserError("--source gym generates as many as you ask for: give --num-train")
    return math.ceil(max(sizes))


def _is_judged_by_value(gym: Any, task: Task, dataset: Any) -> bool:
    if task.name == WORD_PROBLEMS:
        return True
    if type(dataset).score_answer is not gym.dataset.ProceduralDataset.score_answer:
        return False
    answers = (dataset[i]["answer"] for i in range(min(_PEEKED, len(dataset))))
    return all(isinstance(each, str) and rational(each) is not None for each in answers)


def _word_problem(entry: Mapping[str, Any]) -> Row:
    """The question without its instruction; the worked solution without `#### answer`.

    A teacher copies the form of the solution it reads, a last line of another form too.
    """
    answer, solution = _text(entry, "answer"), _text(entry["metadata"], "answer_cot")
    last = _LAST_LINE.search(solution)
    if last is None or rational(last[1]) != rational(answer):
        raise FieldError("answer_cot", f"does not end in the answer {answer}")
    question = _text(entry, "question").removesuffix(_INSTRUCTION)
    return Row(question, answer, solution[: last.start()])


def _row(entry: Mapping[str, Any], scored: Task | None, dataset: Any) -> Row:
    """A problem of a task that brings no worked solutions; `scored`: its scorer judges."""
    question, answer = _text(entry, "question"), _text(entry, "answer")
    if scored is None:
        return Row(question, answer, None)
    try:
        entry = json.loads(json.dumps(entry))
    except (TypeError, ValueError) as error:
        raise FieldError("metadata", f"cannot be stored as JSON ({error})") from error
    if not _is_right(dataset, entry, answer):
        raise FieldError("answer", "its own scorer does not find it right once it was stored")
    if _is_right(dataset, entry, _NO_ANSWER):
        raise FieldError("answer", f"its own scorer finds {_NO_ANSWER!r} right too")
    scorer = {"task": scored.name, "entry": entry}
    if scored.options:
        scorer["options"] = dict(scored.options)
    return Row(question, answer, None, scorer)


def _is_right(dataset: Any, entry: Mapping[str, Any], answer: str) -> bool:
    try:
        return dataset.score_answer(answer, entry) >= 1.0
    except Exception:  # in a worker such an answer is wrong too
        return False


def _text(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise FieldError(field, "the task brings none")
    if (place := surrogate_at(value)) is not None:
        raise FieldError(field, f"holds half a character at character {place}")
    return value.strip()


def _try_first(task: Task, first: list[Row | BadRow]) -> None:
    bad = [item for item in first if isinstance(item, BadRow)]
    if len(bad) == len(first):
        raise UserError(
            f"the task {task.name} cannot be used: of its first problems each is like the "
            f"first one ({bad[0].field or 'problem'}: {bad[0].reason}); take another --task"
        )
