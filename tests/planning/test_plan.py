# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Plans: what a run takes of chips that are not there."""

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from stepalign_jax import plan as command
from stepalign_jax.base.errors import UserError
from stepalign_jax.config.load import load_config
from stepalign_jax.planning import compiled
from stepalign_jax.planning.chips import GIB, Chip, Topology, open_topology
from stepalign_jax.planning.compiled import Compiled, compile_program
from stepalign_jax.planning.plan import Fitted, Plan, Planner
from stepalign_jax.planning.program import Program, held
from stepalign_jax.planning.roofline import Roofline
from stepalign_jax.planning.sizes import num_parameters, published_config
from stepalign_jax.planning.workload import Sampling, part_shapes, workload
from stepalign_jax.sampling.scheduler import cache_widths

ONE = {"data": 1, "fsdp": 1, "tensor": 1}
FEW = (
    "--train.problems_per_step=4",
    "--train.micro_batches=2",
    "--sampling.batch_size=8",
    "--evaluation.batch_size=8",
)
SAMPLING = ("layout", "prefill", "copy", "decode", "resize")


def small_chip(memory: float, number: int = 1) -> Topology:
    return Topology("toy", Chip(memory, 1e12, 1e11), None, number)


def of(plan: Plan, phase: str, name: str) -> Fitted:
    """The program of a phase."""
    [found] = [
        one
        for one in plan.fitted
        if (one.program.phase, one.program.name.split()[0]) == (phase, name)
        if one.program.decides
    ]
    return found


def test_every_phase_of_a_step_is_planned_at_its_longest():
    config = load_config("tiny", FEW)
    plan = Planner(config, small_chip(GIB)).plan()
    names = [(one.program.phase, one.program.name.split()[0]) for one in plan.fitted]
    assert (
        names
        == [
            *(("sample", name) for name in SAMPLING[:-1]),  # its cache has one width
            *(("critique", name) for name in SAMPLING),
            ("score", "score"),
            ("update", "gradient"),
            ("update", "finish"),
            *(("evaluate", name) for name in SAMPLING[:-1]),
        ]
    )
    assert plan.fits and not plan.compiled and plan.mends == {}
    score = next(one.program for one in plan.fitted if one.program.phase == "score")
    longest = plan.work.teacher_row
    assert score.name.startswith("score 2 x ") and int(score.name.split()[-1]) >= longest


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_what_a_program_is_given_is_its_arguments(trainable):
    overrides = ["--train.micro_batches=4", "--parallel.fsdp=2", "--parallel.data=4"]
    if trainable == "full":
        overrides.append("--trainable=full")
    planner = Planner(load_config("stepalign", overrides), small_chip(GIB, 8))
    for program in planner.programs():
        assert held(*program.arguments()) == program.given, program.name


def test_decoding_is_planned_at_every_width_that_is_asked_for():
    planner = Planner(
        load_config("stepalign", ("--train.micro_batches=4",)), small_chip(1e15, 8)
    )
    asked = [p.name for p in planner.programs(every_width=True) if p.phase == "sample"]
    by_default = [p.name for p in planner.programs() if p.phase == "sample"]
    how = workload(load_config("stepalign")).sample
    narrower = cache_widths(how.prompt, how.new)[-2::-1]
    assert len(narrower) >= 3
    assert asked == [*by_default, *(f"decode 32 x {width}" for width in narrower)]


def test_shapes_of_micro_batches_are_counted():
    # Rows of at most 16 tokens, four of them completion, are all 16 wide; two rows have 2 to 8
    # tokens, which are all padded to 16.
    work = workload(load_config("tiny", FEW))._replace(rows=4, parts=2, completion=4, steps=9)
    assert part_shapes(work, 16, shards=1) == 1
    longer = work._replace(completion=512)
    assert 1 < part_shapes(longer, 700, shards=1) <= 9 * 2
    # Where all rows are in one part, each of a step has one shape.
    assert part_shapes(longer._replace(parts=1, steps=1), 700, shards=1) == 1
    assert part_shapes(longer, 700, shards=1) < part_shapes(longer._replace(steps=99), 700, 1)


def test_programs_of_phases_that_are_alike_are_counted_once():
    alike = ("--evaluation.batch_size=4", "--sampling.batch_size=8")  # a step fills 4 of 8
    same, other = (
        Planner(load_config("tiny", (*FEW, *alike, *more)), small_chip(GIB)).plan()
        for more in ((), ("--evaluation.batch_size=8",))
    )
    assert other.num_programs > same.num_programs
    assert len(same.families) < len(same.fitted)


def second_critic(placement: str, *overrides: str) -> Plan:
    """A plan for eight chips of a run whose critic has twice the weights and a cut copy."""
    config = load_config(
        "stepalign",
        (
            *("--critic=checkpoint", "--critic.path=Qwen/Qwen3-4B", "--critic.tensor=2"),
            *("--critic.compute_dtype=bfloat16", f"--critic.placement={placement}"),
            *("--train.micro_batches=8", *overrides),
        ),
    )
    return Planner(config, small_chip(1e15, 8)).plan()


def test_a_second_critic_lies_where_its_placement_says():
    own = second_critic("own", "--critic.placement.num_devices=4")
    turns, shared = (
        second_critic("in_turns", "--train.micro_batches=4"),
        second_critic("shared", "--train.micro_batches=4"),
    )
    weights = {
        name: [of(plan, phase, "decode").parts["weights"] for phase in ("sample", "critique")]
        for name, plan in (("own", own), ("turns", turns), ("shared", shared))
    }
    critic = 2 * num_parameters(published_config("Qwen3-4B")) / 2  # bfloat16, on two chips
    assert weights["own"][1] == weights["turns"][1]
    assert weights["own"][1] == pytest.approx(2 * critic, rel=0.01)  # decoding has a copy
    assert weights["shared"][0] - weights["turns"][0] == pytest.approx(critic, rel=0.01)
    assert weights["shared"][1] > weights["turns"][1]
    optimizer = {
        plan: of(p, "critique", "decode").parts["optimizer"]
        for plan, p in (("own", own), ("shared", shared))
    }
    assert optimizer["own"] == 0 < optimizer["shared"]
    # Slots are shared by two copies on four chips, or four on eight.
    cache = [of(plan, "critique", "decode").program.given["cache"] for plan in (own, turns)]
    assert cache[0] == 2 * cache[1]
    assert of(own, "sample", "decode").program.mesh.size == 4
    assert own.bounds["critique"].seconds > turns.bounds["critique"].seconds


def test_where_fewer_rows_do_not_do_another_remat_may():
    config = load_config("tiny", (*FEW, "--train.micro_batches=4", "--model.remat=none"))
    roomy = Planner(config, small_chip(GIB))
    full, none = (
        max(roomy.fit(p).total for p in roomy._of("update", 1, remat))
        for remat in ("full", "none")
    )
    assert full < none
    mends = Planner(config, small_chip(none - 1))._mended_parts()
    assert mends == {"model.remat": "full", "train.micro_batches": 4}
    mends = Planner(config, small_chip(1))._mended_parts()
    assert mends == {"train.micro_batches": None}


def test_what_a_program_does_not_read_lies_on_the_chip_all_the_same():
    nothing = Compiled(0, 0, 0, 0, accessed=0.0, seconds=1.0, refusal="")
    planner = Planner(load_config("tiny", FEW), small_chip(GIB))
    [score] = [p for p in planner.programs() if p.phase == "score"]
    one = Fitted(score, nothing, GIB)
    assert score.given["optimizer"] > 0
    assert one.total == score.given.total() + score.beside.total()
    assert sum(one.parts.values()) == one.total


def test_a_condition_without_teacher_or_critic_plans_neither():
    plan = Planner(load_config("tiny:grpo"), small_chip(GIB)).plan()
    assert {one.program.phase for one in plan.fitted} == {"sample", "update", "evaluate"}
    assert set(plan.bounds) == {"sample", "update", "evaluate"}


def test_weights_that_are_cut_take_less_of_each_chip():
    def decode_arguments(*overrides: str) -> int:
        config = load_config("stepalign", ("--train.micro_batches=4", *overrides))
        plan = Planner(config, small_chip(1e15, 8)).plan()
        return of(plan, "sample", "decode").memory.arguments

    copies = decode_arguments()
    assert decode_arguments("--parallel.data=1", "--parallel.tensor=8") < 0.6 * copies


def test_parts_that_the_chips_do_not_divide_are_refused():
    with pytest.raises(UserError, match=r"train\.micro_batches"):
        Planner(load_config("stepalign"), small_chip(1e15, 8))


def test_arguments_are_the_weights_the_cache_and_the_state():
    config = load_config("stepalign")
    plan = Planner(config, small_chip(1e15)).plan()
    sizes = published_config("Qwen3-1.7B")
    decode = of(plan, "critique", "decode")
    slots, width = map(int, decode.program.name.split()[1::2])
    cache = 2 * slots * width * sizes.num_layers * sizes.num_kv_heads * sizes.head_dim * 2
    weights = 2 * num_parameters(sizes)  # bfloat16; the critic has no adapter
    assert decode.memory.arguments == pytest.approx(weights + cache, rel=0.01)


def test_what_does_not_fit_is_told_with_the_setting_that_does(capsys, tmp_path, monkeypatch):
    # The critic's 64 slots, of which a step of 64 leaves none empty, take most.
    keys = (*FEW, "--train.problems_per_step=64", "--train.micro_batches=32")
    config = load_config("tiny", keys)
    plan = Planner(config, small_chip(GIB)).plan()
    totals = sorted({one.total for one in plan.fitted if one.program.phase != "critique"})
    limit = totals[-1]  # less than the critic takes
    plan = Planner(config, small_chip(limit)).plan()
    assert not plan.fits and list(plan.mends) == ["critic.batch_size"]
    mend = f"--critic.batch_size={plan.mends['critic.batch_size']}"
    assert Planner(load_config("tiny", (*keys, mend)), small_chip(limit)).plan().fits
    monkeypatch.setattr(command, "open_topology", lambda name: small_chip(limit))
    file = tmp_path / "plan.json"
    with pytest.raises(SystemExit) as ended:
        command.main(["--config", "tiny", *keys, "--topology", "toy", "--to", str(file)])
    assert ended.value.code == 1
    assert f"It would with {mend}." in capsys.readouterr().out
    assert json.loads(file.read_text())["fits"] is False


def test_where_no_number_is_small_enough_it_says_so(capsys, monkeypatch):
    plan = Planner(load_config("tiny", FEW), small_chip(1)).plan()
    assert set(plan.mends.values()) == {None}
    monkeypatch.setattr(command, "open_topology", lambda name: small_chip(1))
    with pytest.raises(SystemExit):
        command.main(["--config", "tiny", *FEW, "--topology", "toy"])
    assert "No value of" in capsys.readouterr().out


def test_the_largest_number_fits_and_its_double_does_not():
    config = load_config("tiny", FEW)
    roomy = Planner(config, small_chip(GIB))
    one, two = (max(roomy.fit(p).total for p in roomy._of("evaluate", n)) for n in (16, 32))
    assert one < two
    assert Planner(config, small_chip(one)).largest("evaluate") == 16


def test_a_roofline_worked_by_hand():
    sizes = published_config("Qwen3-0.6B")
    layers = 28 * (
        2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072 + 2 * 1024 + 2 * 128
    )  # q and o, k and v, the MLP, norms
    head, chip = 1024 * 151_936, Chip(GIB, 100e12, 1e12)
    roofline = Roofline(sizes, chip, ONE, 2)
    how = Sampling(slots=4, prompt=100, new=50, requests=8)
    found = roofline.sampling(how, prompts=2)
    turns, context = 2 * 50, 125
    per_token = 2 * (layers + head) + 4 * 28 * 16 * 128 * context
    prefill = 2 * 100 * (2 * layers + 2 * 28 * 16 * 128 * 100)
    assert found.flops == turns * 4 * per_token + prefill
    weights, cache = 2 * (layers + head), 4 * context * 2 * 28 * 8 * 128 * 2
    assert found.bytes == turns * (weights + cache) + weights
    decoding = turns * (weights + cache) / 1e12  # memory takes longer than products
    assert found.seconds == pytest.approx(decoding + prefill / 100e12, rel=1e-6)
    assert found.by == "memory"
    # The first 29 turns need at most 128 cache slots. A prompt is padded to 128, so that 192
    # hold it with 50 more.
    assert cache_widths(100, 50) == [128, 192]
    wide = (29 * 128 + 21 * 192) / 50
    more = turns * 4 * (wide - context) * 2 * 28 * 8 * 128 * 2 / 1e12
    longer = 2 * 128 * (2 * layers + 2 * 28 * 16 * 128 * 128)  # prompts padded to 128
    assert found.shaped == pytest.approx(decoding + more + longer / 100e12, rel=1e-6)
    # Eight chips each have a row of the cache, and a row of a prefill, for which reading the
    # weights takes longer than its products.
    eight = Roofline(sizes, chip, ONE | {"data": 8}, 2).sampling(how._replace(slots=8), 2)
    turns, row = 50, 2 * 28 * 8 * 128 * 2
    decoding = turns * (weights + wide * row) / 1e12
    assert longer / 2 / 100e12 < weights / 1e12
    assert eight.shaped == pytest.approx(decoding + weights / 1e12, rel=1e-6)


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v5e:0x1", "v5e:axb", "v9:1x1", "h100:x"])
def test_an_unknown_topology_is_refused_with_known_ones(name):
    with pytest.raises(UserError, match="v5e:2x4"):
        open_topology(name)


@pytest.mark.parametrize("text", ["-1", "nan", "cheap", "inf"])
def test_a_price_is_a_number(text):
    with pytest.raises(UserError, match="--price"):
        command._price(text)


def test_only_what_makes_a_program_decides_what_is_remembered_of_it():
    def keys(*overrides: str) -> dict[str, str]:
        config = load_config("stepalign", overrides)
        plan = Planner(config, small_chip(1e15)).plan()
        programs = [one.program for one in plan.fitted]
        return {f"{one.phase} {one.name.split()[0]}": one.key for one in programs}

    second = (
        *("--critic=checkpoint", "--critic.compute_dtype=bfloat16"),
        *("--critic.placement=in_turns", "--critic.tensor=1"),
    )
    small, large = (keys(*second, f"--critic.path=Qwen/{n}") for n in ("Qwen3-4B", "Qwen3-8B"))
    differ = {name for name in small if small[name] != large[name]}
    assert differ == {f"critique {name}" for name in SAMPLING}
    assert small["sample prefill"] == small["evaluate prefill"]
    slower = keys(*second, "--critic.path=Qwen/Qwen3-4B", "--optimizer.learning_rate=1e-7")
    changed = {"score score", "update gradient", "update finish"}
    assert {n for n in small if small[n] != slower[n]} == changed


def program(key: str, lower: Any) -> Program:
    class Lowering(Program):
        lower = lambda self: lower()  # noqa: E731

    mesh = SimpleNamespace(shape={})
    made_of, nothing = (key,), Counter()
    return Lowering(
        "sample", "toy", made_of, None, lambda: (), mesh, nothing, nothing, "rows", 0, 0
    )


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "_versions", lambda: ("1",))
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def test_what_was_compiled_is_remembered_until_the_program_or_a_version_changes(
    kept, monkeypatch
):
    asked: list[str] = []

    def lower() -> Any:
        asked.append("lowered")
        return jax.jit(lambda x: x + 1).lower(1.0)

    first = compile_program(program("a", lower), "v5e:1x1")
    assert compile_program(program("a", lower), "v5e:1x1") == first and len(asked) == 1
    assert first.arguments > 0 and first.refusal == ""
    compile_program(program("b", lower), "v5e:1x1")
    compile_program(program("a", lower), "v5e:2x4")
    assert len(asked) == 3
    monkeypatch.setattr(compiled, "_versions", lambda: ("2",))
    compile_program(program("a", lower), "v5e:1x1")
    assert len(asked) == 4


def test_the_compilers_refusal_is_an_answer_and_other_errors_are_not(kept):
    class Refusing:
        def compile(self) -> Any:
            raise jax.errors.JaxRuntimeError(self.words)

        def __init__(self, words: str):
            self.words = words

    words = "RESOURCE_EXHAUSTED: 21.32G of 15.75G hbm. Exceeded hbm capacity by 5.57G."
    found = compile_program(program("c", lambda: Refusing(words)), "v5e:1x1")
    assert found.refusal == words and found.arguments == found.temporaries == 0
    with pytest.raises(jax.errors.JaxRuntimeError):
        compile_program(program("d", lambda: Refusing("INTERNAL: what")), "v5e:1x1")
