# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Which rollouts end in a loop: the same tokens again and again, up to the budget."""

import numpy as np
from numpy.typing import ArrayLike

# Three copies are no accident where they are long; a short number such as 111 is no loop.
NUM_COPIES = 3
SHORTEST = 24  # tokens of all copies together
LONGEST_BLOCK = 128  # tokens that one copy may have


def ends_in_loop(tokens: ArrayLike, lengths: ArrayLike) -> np.ndarray:
    """Returns which rows end in at least three copies of one block of tokens.

    The last copy may be cut anywhere, as a budget cuts it. With A, B, C tokens and S the stop
    token, blocks of 3 tokens:

        x A B C A B C A B C        three copies, a loop if they have SHORTEST tokens
        x A B C A B C A B C A      the same, cut in the fourth
        x A B C A B C A B C S      no loop: the model found its way out of it

    Args:
      tokens: [B, T] int.
      lengths: [B] tokens of each row; what follows does not count.

    Returns:
      [B] bool; False for a row shorter than SHORTEST.
    """
    tokens, lengths = np.asarray(tokens), np.asarray(lengths)
    num_rows, width = tokens.shape
    # Each row moved to the right end, so that every end is at one place.
    places = np.arange(width) - width + lengths[:, None]
    moved = np.take_along_axis(tokens, np.maximum(places, 0), axis=1)
    found = np.zeros(num_rows, bool)
    for block in range(1, min(LONGEST_BLOCK, width // NUM_COPIES) + 1):
        needed = max(NUM_COPIES * block, SHORTEST)
        if needed > width:
            break
        end = moved[:, width - needed :]
        same = (end[:, block:] == end[:, :-block]).all(axis=1)
        found |= same & (lengths >= needed)
    return found
