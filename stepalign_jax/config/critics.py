# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Sections of the critics that are no model of this package: a server, and a file."""

from typing import Literal

from stepalign_jax.config.schema import CriticConfig
from stepalign_jax.config.sections import Count, Natural, NonNegative, Place, Positive, section


@section
class EndpointCritic(CriticConfig):
    """A server that speaks OpenAI's chat completions; needs the extra `endpoint`."""

    kind: Literal["endpoint"] = "endpoint"
    url: str  # up to the version, such as http://localhost:8000/v1
    model: str  # its name there
    key_variable: str  # the environment variable that holds the key; "" for a server without
    sees: Literal["question", "answer", "reference"]  # each shows the ones before it too
    accepts: Literal["trace", "any"]  # a trace with its answer, or any text, as a comment is
    temperature: NonNegative  # 0 is greedy
    max_new_tokens: Count  # its thinking included
    concurrency: Count  # requests under way at once
    requests_per_minute: Natural  # 0 is no limit
    timeout_secs: Positive  # of one request, to its last byte
    max_retries: Natural  # requests again after 429, 5xx, a lost connection or a timeout
    price_input: NonNegative  # of a million tokens, in any one currency
    price_output: NonNegative


@section
class ReplayCritic(CriticConfig):
    """Critiques that another run has stored; nothing is asked."""

    kind: Literal["replay"] = "replay"
    store: Place  # a critiques.jsonl, or a directory of stores
    critic: str  # whose, where the store has several; "" where it has one
    accepts: Literal["trace", "any"]  # a trace with its answer, or any text, as a comment is
    require_all: bool  # a missing critique ends the run; else it is the failure `missing`
