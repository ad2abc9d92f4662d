# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Step-aligned self-distillation. Importing the package runs nothing.

Only `python -m stepalign_jax.<command>`, which comes by here before the command's own imports,
is told what a Ctrl-C means until `run_command` takes over.
"""

import sys

# While Python looks for the module that -m names, argv[0] is "-m"; argv[1:] are the arguments,
# before which the module stands on the whole command line.
if sys.argv[:1] == ["-m"]:
    module = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
    if module.partition(".")[0] == __name__:
        from stepalign_jax.base.stopping import end_on_interrupt

        end_on_interrupt()
