"""Training a language model: configuration, data, the loop, and the run's folder."""

from bptt.training.config import Options, TrainingConfig, check, resolve
from bptt.training.data import Corpus, encode_for, evaluation_batches, load_corpus
from bptt.training.evaluation import Measurement, evaluate
from bptt.training.flow import (
    FlowPlan,
    Stretch,
    flow_of_stretch,
    flow_over,
    trained_truncation,
)
from bptt.training.loop import Stopped, Trainer
from bptt.training.reporter import Reporter
from bptt.training.run_folder import RunFolder
from bptt.training.window_choice import Choice

__all__ = [
    "Choice",
    "Corpus",
    "FlowPlan",
    "Measurement",
    "Options",
    "Reporter",
    "RunFolder",
    "Stopped",
    "Stretch",
    "Trainer",
    "TrainingConfig",
    "check",
    "encode_for",
    "evaluate",
    "evaluation_batches",
    "flow_of_stretch",
    "flow_over",
    "load_corpus",
    "resolve",
    "trained_truncation",
]
