"""Shapes and dtypes of every public function are checked while the tests run."""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from jaxtyping import install_import_hook

# They annotate no shapes, and a check of their helpers costs more than a helper does: a
# third of all checks, and of the time of the kernels' tests.
UNCHECKED = ("bptt.autograd", "bptt.kernels.native")


class _Unchecked:
    """Finds those modules before the hook does."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, path) if name in UNCHECKED else None


install_import_hook("bptt", "typecheck.check")
sys.meta_path.insert(0, _Unchecked)

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes that share the cores
    import torch

    torch.set_num_threads(1)
