# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The packaged model's tokenizer and chat template, in Hugging Face format.

One token per digit, operator, or fixed phrase of the trace format: a reasoning step such
as `Step 2: 47+24=71` and its line break are ten tokens.
"""

import functools
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unk|>"
USER, ASSISTANT = "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, END, USER, ASSISTANT, UNKNOWN)
PHRASES = (
    *(f"Step {i}: " for i in range(10, 0, -1)),
    "Answer: ",
    "\nFeedback:\n",
    "\nExpected: ",
    "\nAttempt:\n",
    "so ",
    " gives ",
    "; ",
    "Total ",
    "\n",
)
SYMBOLS = tuple("0123456789+-*=")
VOCABULARY = {piece: i for i, piece in enumerate((*SPECIAL_TOKENS, *PHRASES, *SYMBOLS))}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<|user|>{{ message.content }}"
    "{% else %}<|assistant|>{{ message.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_PIECE = re.compile("|".join(map(re.escape, (*SPECIAL_TOKENS, *PHRASES, *SYMBOLS))) + "|.")


@functools.lru_cache(maxsize=4096)
def encode(text: str) -> tuple[int, ...]:
    """Returns the token ids of `text`: the saved tokenizer's, at the speed a corpus needs."""
    return tuple(VOCABULARY.get(p, VOCABULARY[UNKNOWN]) for p in _PIECE.findall(text))


def save_tokenizer(directory: Path) -> None:
    """Writes tokenizer.json, its config and the chat template to `directory`."""
    from transformers import PreTrainedTokenizerFast  # seconds to import, and only used here

    pieces = Regex("|".join(re.escape(p) for p in (*PHRASES, *SYMBOLS)) + "|.")
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(directory)
