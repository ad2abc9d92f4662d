# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes the packaged tiny model from nothing, or another base by the same recipe.

    python -m stepalign_jax.pretrain --config configs/tiny.py --to /tmp/tiny
    python -m stepalign_jax.pretrain --config configs/tiny.py --seed=1 --to bases/1
    python -m stepalign_jax.pretrain --config tiny:natural --recipe natural --to bases/natural

`tiny/pretraining.py` holds the recipes. `seed` decides initial weights and corpus; the packaged
model has 0.
"""

from pathlib import Path

from stepalign_jax.base.errors import UserError
from stepalign_jax.config.cli import parse_arguments, run_command
from stepalign_jax.config.load import load_config
from stepalign_jax.feedback.prompts import check_templates
from stepalign_jax.tiny.pretraining import RECIPES, STAGES, pretrain, seen_by_critic


def main(argv: list[str]) -> None:
    """Pre-trains, and writes the checkpoint."""
    arguments = parse_arguments(
        argv,
        description="Pre-trains the tiny model from nothing; another seed, another base.",
        example="python -m stepalign_jax.pretrain --config configs/tiny.py --to /tmp/tiny",
        sections=("seed", "problems", "prompts", "critic"),
        options={
            "--to": {"required": True, "metavar": "DIR", "help": "where the checkpoint goes"},
            "--overwrite": {
                "action": "store_true",
                "help": "replace an earlier pre-trained checkpoint in DIR, once all is done",
            },
            "--log-every-steps": {"type": int, "default": 50, "metavar": "N"},
            "--recipe": {
                "default": "planted",
                "choices": RECIPES,
                "help": "planted: the packaged model's; natural: nothing planted, few steps",
            },
            "--from-stage": {
                "type": int,
                "default": 0,
                "choices": range(len(STAGES)),
                "help": "continue from the checkpoint of the stages before, in DIR",
            },
        },
    )
    config = load_config(arguments.config, arguments.overrides)
    check_templates(config.prompts, sees=seen_by_critic(config))
    stages = RECIPES[arguments.recipe]
    if arguments.from_stage >= len(stages):
        raise UserError(
            f"--from-stage={arguments.from_stage}, but --recipe={arguments.recipe} has "
            f"{len(stages)} stage(s), numbered from 0."
        )
    pretrain(
        config,
        stages[arguments.from_stage :],
        Path(arguments.to),
        arguments.log_every_steps,
        overwrite=arguments.overwrite,
    )


if __name__ == "__main__":
    run_command(main)
