# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""SentencePiece tokenizers made from nothing, and what a chat template says."""

import json
import random
from pathlib import Path
from typing import Any

import sentencepiece

TURNS = ["<start_of_turn>", "<end_of_turn>"]


SPECIALS = ["<s>", "</s>", *TURNS, "<think>", "</think>"]


# Gemma's way: the template writes <s> itself, and trims.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n"
    "{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)


WORDS = [
    "Step",
    "Answer",
    "the",
    "sum",
    "of",
    "so",
    "user",
    "model",
    "12",
    "34",
    "46",
    "+",
    "=",
]


def train(directory: Path, kind: str) -> None:
    """Writes tokenizer.model: 400 pieces of made-up sums, no prefix space, no clean-up."""
    rng = random.Random(0)
    corpus = directory / "corpus.txt"
    lines = (" ".join(rng.choices(WORDS, k=8)) for _ in range(400))
    corpus.write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.Train(  # pyright: ignore[reportAttributeAccessIssue]
        input=str(corpus),
        model_prefix=str(directory / "tokenizer"),
        model_type=kind,
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=[*TURNS, "\n"],
        minloglevel=2,
    )


def build(directory: Path, kind: str, tokenizer_class: str | None) -> Path:
    train(directory, kind)
    config = {
        "tokenizer_class": tokenizer_class,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,  # the template's <s> has to remain the only one
        "additional_special_tokens": [*TURNS, "<think>", "</think>"],
        "chat_template": TEMPLATE,
    }
    if tokenizer_class is None:
        del config["tokenizer_class"]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def by_template(tokenizer: Any, text: str, thinking: bool) -> list[int]:
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        tokenize=True,
        return_dict=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
