# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes the packaged tiny model from nothing, or another base by the same recipe.

    python -m stepalign_jax.pretrain --config configs/tiny.py --to /tmp/tiny
    python -m stepalign_jax.pretrain --config configs/tiny.py --seed=1 --to bases/1

`tiny/pretraining.py` holds the recipe. `seed` decides initial weights and corpus; the packaged
model has 0.
"""

from pathlib import Path

from stepalign_jax.config.cli import parse_arguments, run_command
from stepalign_jax.config.load import load_config
from stepalign_jax.feedback.prompts import check_templates
from stepalign_jax.tiny.pretraining import STAGES, pretrain


def main(argv: list[str]) -> None:
    """Pre-trains, and writes the checkpoint."""
    arguments = parse_arguments(
        argv,
        description="Pre-trains the tiny model from nothing; another seed, another base.",
        example="python -m stepalign_jax.pretrain --config configs/tiny.py --to /tmp/tiny",
        sections=("seed", "problems", "prompts"),
        options={
            "--to": {"required": True, "metavar": "DIR", "help": "where the checkpoint goes"},
            "--overwrite": {
                "action": "store_true",
                "help": "replace an earlier pre-trained checkpoint in DIR, once all is done",
            },
            "--log-every-steps": {"type": int, "default": 50, "metavar": "N"},
            "--from-stage": {
                "type": int,
                "default": 0,
                "choices": range(len(STAGES)),
                "help": "continue from the checkpoint of the stages before, in DIR",
            },
        },
    )
    config = load_config(arguments.config, arguments.overrides)
    check_templates(config.prompts, sees="answer")
    pretrain(
        config,
        STAGES[arguments.from_stage :],
        Path(arguments.to),
        arguments.log_every_steps,
        overwrite=arguments.overwrite,
    )


if __name__ == "__main__":
    run_command(main)
