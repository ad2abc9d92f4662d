# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""What sections of the configuration are made of: their decorator, and types that carry a rule.

A `Literal` lists names, and an `Annotated` number carries an interval in the usual notation,
[ and ] including the bound. `fields.py` checks them.
"""

import dataclasses
from typing import Annotated, TypeVar, dataclass_transform

Count = Annotated[int, "[1, inf)"]
Natural = Annotated[int, "[0, inf)"]
Seed = Annotated[int, "[0, 4294967296)"]
AxisSize = Annotated[int, "-1 or [1, inf)"]
Positive = Annotated[float, "(0, inf)"]
NonNegative = Annotated[float, "[0, inf)"]
Share = Annotated[float, "[0, 1]"]
PositiveShare = Annotated[float, "(0, 1]"]
InnerShare = Annotated[float, "(0, 1)"]
Momentum = Annotated[float, "[0, 1)"]
Place = Annotated[str, "path"]  # not empty; a leading ~ expands on the command line
OptionalPlace = Annotated[str, "path or empty"]

Section = TypeVar("Section")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(definition: type[Section]) -> type[Section]:
    """Makes a class a frozen dataclass whose fields are given by name."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(definition)


class Choice:
    """Marks the base of a section that is one of several classes."""
