"""Recurrent networks trained with backpropagation through time.

The names below are the public interface. They load on first use, so that
`bptt --help` does not wait for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bptt import cells as cells
    from bptt import explain as explain
    from bptt import tutorial as tutorial
    from bptt import verify as verify
    from bptt.errors import CheckpointError as CheckpointError
    from bptt.errors import GradientError as GradientError
    from bptt.errors import InputError as InputError
    from bptt.flow import FlowEstimates as FlowEstimates
    from bptt.flow import GradientFlow as GradientFlow
    from bptt.flow import gradient_flow as gradient_flow
    from bptt.language_model import LanguageModel as LanguageModel
    from bptt.modules import GRU as GRU
    from bptt.modules import LSTM as LSTM
    from bptt.modules import RNN as RNN
    from bptt.modules import Accelerated as Accelerated
    from bptt.modules import Recurrent as Recurrent
    from bptt.modules import Stateful as Stateful
    from bptt.modules import accelerate as accelerate
    from bptt.random_truncation import RandomTruncation as RandomTruncation
    from bptt.truncation import Truncation as Truncation
    from bptt.verify import GradientReport as GradientReport
    from bptt.verify import check_gradients as check_gradients

__version__ = "0.1.0"

# public name -> the module that defines it
_HOME = {
    "CheckpointError": "bptt.errors",
    "GradientError": "bptt.errors",
    "InputError": "bptt.errors",
    "FlowEstimates": "bptt.flow",
    "GradientFlow": "bptt.flow",
    "gradient_flow": "bptt.flow",
    "GRU": "bptt.modules",
    "LSTM": "bptt.modules",
    "RNN": "bptt.modules",
    "Accelerated": "bptt.modules",
    "Stateful": "bptt.modules",
    "accelerate": "bptt.modules",
    "Recurrent": "bptt.modules",
    "LanguageModel": "bptt.language_model",
    "RandomTruncation": "bptt.random_truncation",
    "Truncation": "bptt.truncation",
    "GradientReport": "bptt.verify",
    "check_gradients": "bptt.verify",
}
_MODULES = ("cells", "explain", "tutorial", "verify")

__all__ = ["__version__", *_MODULES, *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)  # noqa: TID251 - of ours
    elif name in _MODULES:
        value = importlib.import_module(f"bptt.{name}")  # noqa: TID251 - of ours
    else:
        raise AttributeError(f"module 'bptt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
