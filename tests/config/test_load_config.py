# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.load import check_variant, config_from_json, load_config
from stepalign_jax.config.merge import apply_overrides
from stepalign_jax.config.schema import Config

STEPALIGN = str(Path(__file__).parents[2] / "configs" / "stepalign.py")


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(STEPALIGN)


def write_config(directory: Path, body: str, name: str = "mine.py") -> str:
    """A config file that starts from the reference run, bound to `base`."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    head = (
        "from dataclasses import replace\n"
        "from stepalign_jax.config.load import load_config\n"
        f"base = load_config({STEPALIGN!r})\n"
    )
    path.write_text(head + body)
    return str(path)


def value(config: Config, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


# Overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=7", 7),
        ("parallel.data=-1", -1),
        ("optimizer.learning_rate=3e-4", 3e-4),
        ("trainable.alpha=8", 8.0),
        ("prompts.solver_thinking=true", True),
        ("prompts.critic_thinking=False", False),
        ("prompts.solver=a=b {problem}\nc", "a=b {problem}\nc"),
        ("problems.path=", ""),
        ("trainable.targets=q_proj, v_proj", ("q_proj", "v_proj")),
        ("trainable.targets=", ()),
    ],
)
def test_an_override_takes_the_type_of_its_key(
    config: Config, override: str, expected: Any
) -> None:
    key = override.partition("=")[0]
    found = value(apply_overrides(config, ["--" + override]), key)
    assert (found, type(found)) == (expected, type(expected))


def test_overrides_change_their_keys_alone_and_the_last_counts(config: Config) -> None:
    changed = apply_overrides(config, ["--train.num_steps=5", "--train.num_steps=6"])
    train = dataclasses.replace(config.train, num_steps=6)
    assert changed == dataclasses.replace(config, train=train)


@pytest.mark.parametrize(
    ("override", "key", "text", "kind"),
    [
        ("train.num_steps=five", "train.num_steps", "five", "an integer"),
        ("train.num_steps=1.0", "train.num_steps", "1.0", "an integer"),
        ("sampling.top_p=high", "sampling.top_p", "high", "a finite number"),
        ("sampling.top_p=nan", "sampling.top_p", "nan", "a finite number"),
        ("prompts.solver_thinking=1", "prompts.solver_thinking", "1", "true or false"),
    ],
)
def test_a_wrong_type_names_key_value_and_type(
    config: Config, override: str, key: str, text: str, kind: str
) -> None:
    with pytest.raises(UserError) as error:
        apply_overrides(config, ["--" + override])
    assert str(error.value) == f"{key} cannot be {text!r}: it takes {kind}"


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("train.num_step", "train.num_steps"),
        ("optimiser.learning_rate", "optimizer.learning_rate"),
        ("train.learning_rate", "optimizer.learning_rate"),
        ("num_steps", "train.num_steps"),
        ("critic.temprature", "critic.temperature"),
        ("sed", "seed"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(
    config: Config, wrong: str, nearest: str
) -> None:
    with pytest.raises(UserError) as error:
        apply_overrides(config, [f"--{wrong}=1"])
    assert f"no key {wrong!r}" in str(error.value)
    assert str(error.value).endswith(f"did you mean {nearest!r}?")


def test_a_section_is_no_key(config: Config) -> None:
    with pytest.raises(UserError, match="no key 'train'"):
        apply_overrides(config, ["--train=5"])


@pytest.mark.parametrize("override", ["seed=1", "--seed", "--=1", ""])
def test_an_override_of_another_form_is_refused(config: Config, override: str) -> None:
    with pytest.raises(UserError, match=r"must have the form --section\.key=value"):
        apply_overrides(config, [override])


# Files and variants


def test_overrides_are_applied_and_validated() -> None:
    assert load_config(STEPALIGN, ["--train.num_steps=5"]).train.num_steps == 5
    with pytest.raises(UserError, match=r"train\.num_steps is 0, but it must be at least 1"):
        load_config(STEPALIGN, ["--train.num_steps=0"])


def test_a_missing_file_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        load_config(STEPALIGN.replace("stepalign.py", "stepaling.py"))
    assert str(error.value).endswith(f"did you mean {STEPALIGN}?")
    with pytest.raises(UserError, match=r"there is no config file no/where\.py$"):
        load_config("no/where.py")


def test_check_variant() -> None:
    check_variant("")
    check_variant("hard", ("easy", "hard"))
    with pytest.raises(UserError, match="has no variants"):
        check_variant("hard")
    with pytest.raises(UserError, match=r"but easy, hard; did you mean 'hard'\?"):
        check_variant("hrd", ("easy", "hard"))


def test_the_variant_reaches_get_config(tmp_path: Path) -> None:
    path = write_config(
        tmp_path, "def get_config(variant):\n    return replace(base, name=variant)"
    )
    assert load_config(f"{path}:red").name == "red"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("x = 1", r"must define get_config\(variant\)"),
        (
            "def get_config(variant):\n    return 3",
            "returned an object of type int instead of a Config",
        ),
        ("def get_config(variant):\n    return 1 / 0", "line 5: ZeroDivisionError"),
        ("def get_config(variant):\n    return (", "SyntaxError"),
        (
            "def get_config(variant):\n"
            "    return replace(base, train=replace(base.train, num_stepz=1))",
            r"line 5: the config has no key 'num_stepz'; did you mean 'train.num_steps'\?",
        ),
        (
            "def get_config(variant):\n"
            "    return replace(base, train=replace(base.train, num_steps='5'))",
            "train.num_steps is '5', but it takes an integer",
        ),
        ("import no_such_sibling", "line 4: ModuleNotFoundError"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, body: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_config(write_config(tmp_path, body))


def test_only_python_files_are_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 1")
    with pytest.raises(UserError, match=r"must be a Python file"):
        load_config(str(path))


def test_siblings_of_one_name_are_kept_apart_and_leave_nothing(tmp_path: Path) -> None:
    before, path_before = set(sys.modules), list(sys.path)
    for name, seed in (("a", 1), ("b", 2)):
        write_config(tmp_path / name, f"seed = {seed}", "sibling.py")
        body = "import sibling\ndef get_config(variant):\n"
        spec = write_config(
            tmp_path / name, body + "    return replace(base, seed=sibling.seed)"
        )
        assert load_config(spec).seed == seed
        assert {path.name for path in (tmp_path / name).iterdir()} == {"mine.py", "sibling.py"}
    assert "sibling" not in set(sys.modules) - before
    assert sys.path == path_before


def write_json(directory: Path, config: Config, change: Any = lambda values: None) -> Path:
    """A run's config.json, its values changed in place."""
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    change(values)
    path = directory / "config.json"
    path.write_text(json.dumps(values))
    return path


def test_the_config_of_a_run_is_read_back(config: Config, tmp_path: Path) -> None:
    path = write_json(tmp_path, config)
    assert config_from_json(path) == config
    assert config_from_json(path, ["--model.path=here"]).model.path == "here"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: v.pop("seed"), "the key 'seed' is missing"),
        (lambda v: v["train"].pop("num_steps"), "the key 'train.num_steps' is missing"),
        (lambda v: v["train"].update(num_step=1), "did you mean 'train.num_steps'"),
        (lambda v: v.update(train=3), "train must be an object"),
        (
            lambda v: v["train"].update(num_steps="5"),
            "train.num_steps is '5', but it takes an integer",
        ),
        (lambda v: v["trainable"].update(targets=[1]), "trainable.targets is"),
        (lambda v: v["trainable"].update(kind="loar"), "did you mean 'lora'"),
    ],
)
def test_a_run_of_another_schema_is_refused(
    config: Config, tmp_path: Path, change: Any, sentence: str
) -> None:
    path = write_json(tmp_path, config, change)
    with pytest.raises(UserError) as error:
        config_from_json(path)
    assert sentence in str(error.value) and str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_what_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        config_from_json(tmp_path / "config.json")
    with pytest.raises(UserError, match="name the directory of a run"):
        config_from_json(tmp_path / "none.json")
