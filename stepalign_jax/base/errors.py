# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The one exception that stands for a mistake a user can mend."""


class UserError(Exception):
    """Bad input. Its text is one sentence: what is wrong, where, and how to mend it.

    Commands print the text without a traceback and exit with status 2.
    """
