# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The divergence by axis name: pmap, shard_map, an outer one, a caller's mesh; 8 devices."""

import pytest
from support.runs import output_on_devices

from stepalign_jax.objectives.vocabulary import Cut


@pytest.mark.parametrize(
    ("check", "says"),
    [
        pytest.param("check_all_ways", "equal by 18 ways on 8 devices", marks=pytest.mark.long),
        pytest.param("check_other_losses", "equal for 4 losses", marks=pytest.mark.long),
        ("check_forward_only", "scores are equal"),
        ("check_the_page", "docs/divergence.md is right"),
    ],
)
def test_each_way_gives_the_numbers_of_one_device(check, says):
    code = f"from support import cuts; cuts.{check}()"
    assert output_on_devices(code, num_devices=8, timeout_secs=900) == says


def test_the_width_is_cut_by_an_axis_of_tokens():
    with pytest.raises(ValueError, match="width_axis 'w' must be one of token_axes"):
        Cut(token_axes=("rows",), width_axis="w")
