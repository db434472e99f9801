import math

import pytest

from bptt.training import Options, check, resolve
from bptt.truncation import Truncation

VOCAB = 50


def resolved(**options):
    """The fields of both results that the table names."""
    model, training = resolve(Options(**options), VOCAB)
    return model, training


# options -> fields of the model and of the training that follow from them
DEFAULTS = [
    (
        {},
        {"vocab": VOCAB, "cell": "lstm", "hidden": 512, "layers": 1, "embedding": 0}
        | {"tied": False, "bias": True, "dropout": 0.0, "unit": "stream"},
        {"level": "char", "vocab": None, "window": 64, "k1": None, "k2": None}
        | {"batch": 32, "optimizer": "adamw", "lr": 6e-3, "clip": 1.0}
        | {"weight_decay": 0.01, "epochs": None, "steps": None, "minutes": 2.0}
        | {"seed": 0, "device": "cpu", "snapshot_every": 0},
    ),
    (
        {"optimizer": "sgd"},
        {"hidden": 100, "embedding": 0, "tied": False, "bias": False},
        {"batch": 1, "lr": 0.005, "clip": 0.0, "window": 64},
    ),
    (
        {"optimizer": "sgd", "hidden": 7, "bias": True, "lr": 1.0, "clip": 5.0}
        | {"batch": 3},
        {"hidden": 7, "bias": True},
        {"batch": 3, "lr": 1.0, "clip": 5.0},
    ),
    ({"clip": 0.0, "bias": False}, {"bias": False}, {"clip": 0.0}),
    (
        {"cell": "gru", "layers": 3, "dropout": 0.5, "seed": 9, "vocab": 40},
        {"cell": "gru", "layers": 3, "dropout": 0.5, "vocab": VOCAB},
        {"seed": 9, "vocab": 40},
    ),
    # words and pieces get a tied embedding, but not in the tutorial's recipe
    ({"level": "word"}, {"embedding": 512, "tied": True}, {"level": "word"}),
    ({"level": "bpe", "hidden": 9}, {"embedding": 9, "tied": True}, {}),
    ({"level": "word", "optimizer": "sgd"}, {"embedding": 0, "tied": False}, {}),
    ({"level": "word", "tied": False}, {"embedding": 512, "tied": False}, {}),
    ({"level": "word", "embedding": 32}, {"embedding": 32, "tied": False}, {}),
    ({"level": "word", "embedding": 512}, {"embedding": 512, "tied": True}, {}),
    ({"level": "word", "embedding": 0}, {"embedding": 0, "tied": False}, {}),
    ({"tied": True}, {"embedding": 512, "tied": True}, {}),
    ({"embedding": 512}, {"embedding": 512, "tied": False}, {}),
    ({"embedding": 20, "tied": False}, {"embedding": 20, "tied": False}, {}),
    (
        {"unit": "sentence", "one_a_line": True},
        {"unit": "sentence", "one_a_line": True},
        {"window": None, "k1": None, "k2": None},
    ),
    ({"steps": 5}, {}, {"steps": 5, "epochs": None, "minutes": None}),
    ({"epochs": 5}, {}, {"steps": None, "epochs": 5, "minutes": None}),
    ({"minutes": 0.5}, {}, {"steps": None, "epochs": None, "minutes": 0.5}),
    ({"snapshot_every": 7, "device": "cuda"}, {}, {"snapshot_every": 7}),
]


@pytest.mark.parametrize(("options", "model", "training"), DEFAULTS, ids=str)
def test_defaults(options, model, training):
    found_model, found_training = resolved(**options)
    assert {name: getattr(found_model, name) for name in model} == model
    assert {name: getattr(found_training, name) for name in training} == training


FULL = Truncation.full()
# options -> k1 and k2, the truncation of an update's segment, the context before it
TRUNCATIONS = [
    ({}, (None, None), FULL, 0),
    ({"k2": "full"}, (None, None), FULL, 0),
    ({"k1": 8, "k2": "full"}, (None, None), FULL, 0),
    ({"k2": 64}, (64, 64), FULL, 0),
    ({"k1": 64}, (64, 64), FULL, 0),
    ({"k2": 192}, (64, 192), FULL, 128),
    ({"k2": 65}, (64, 65), FULL, 1),
    ({"k2": 16}, (64, 16), Truncation(64, 16), 0),
    ({"k1": 8}, (8, 64), Truncation(8, 64), 56),
    ({"k1": 8, "k2": 8}, (8, 8), Truncation.chunks(8), 0),
    ({"k1": 8, "k2": 9}, (8, 9), Truncation(8, 9), 8),
    ({"k1": 8, "k2": 100}, (8, 100), Truncation(8, 100), 96),
    ({"k1": 1, "k2": 1}, (1, 1), Truncation(1, 1), 0),
    ({"k1": 10, "k2": 4}, (10, 4), Truncation(10, 4), 0),
    ({"bptt_truncate": 4}, (1, 5), Truncation.per_output(4), 4),
    ({"bptt_truncate": 0}, (1, 1), Truncation(1, 1), 0),
    ({"window": 1, "k2": 5}, (1, 5), FULL, 4),
    ({"unit": "sentence"}, (None, None), FULL, 0),
    ({"unit": "sentence", "k2": "full"}, (None, None), FULL, 0),
    ({"unit": "sentence", "k1": 3}, (3, 3), Truncation.chunks(3), 0),
    ({"unit": "sentence", "k1": 100, "k2": 200}, (100, 200), Truncation(100, 200), 0),
    ({"unit": "sentence", "bptt_truncate": 4}, (1, 5), Truncation.per_output(4), 0),
]


@pytest.mark.parametrize(
    ("options", "passes", "truncation", "context"), TRUNCATIONS, ids=str
)
def test_truncations(options, passes, truncation, context):
    _, training = resolved(**options)
    assert (training.k1, training.k2) == passes
    assert training.truncation(training.k2) == truncation
    assert training.context(training.k2) == context


@pytest.mark.parametrize("k1", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("k2", range(1, 40))
def test_every_pass_of_a_window_has_its_reach(k1, k2):
    _, training = resolved(window=12, k1=k1, k2=k2)
    begin = -training.context(training.k2)  # of the segment; the window begins at 0
    first_step_reached = k1 - k2  # by the earliest pass of the window
    if training.truncation(training.k2).is_full:
        assert begin == min(0, first_step_reached)
        return
    assert begin <= min(0, first_step_reached)
    assert begin > first_step_reached - k1 or begin == 0
    # chunks of the segment are those of the window
    assert training.context(training.k2) % k1 == 0


CONTRADICTIONS = [
    ({"epochs": 1, "steps": 1}, "give one of --epochs and --steps, not both"),
    ({"steps": 1, "minutes": 1.0}, "give one of --steps and --minutes"),
    ({"epochs": 1, "minutes": 1.0}, "give one of --epochs and --minutes"),
    ({"bptt_truncate": 4, "k1": 1}, "--bptt-truncate N is --k1 1 --k2 N[+]1; give"),
    ({"bptt_truncate": 4, "k2": 5}, "--bptt-truncate"),
    ({"bptt_truncate": 4, "k2": "full"}, "--bptt-truncate"),
    ({"k1": 65}, "--k1 must be at most --window = 64, .*; got 65"),
    ({"k1": 10, "k2": 20}, "--window must be a multiple of --k1 = 10 .*64, try 60"),
    ({"k1": 10}, "--window must be a multiple of --k1"),
    ({"one_a_line": True}, "--one-a-line is for --unit sentence"),
    ({"unit": "sentence", "k2": 5}, "--k2 with --unit sentence needs --k1"),
    (
        {"tied": True, "embedding": 3},
        "--tied needs --embedding as wide as --hidden = 5",
    ),
    ({"tied": True, "embedding": 0}, "--tied needs --embedding .*; got 0"),
]


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS, ids=str)
def test_contradictions(options, message):
    with pytest.raises(ValueError, match=message):
        check(Options(**options))
    with pytest.raises(ValueError, match=message):
        resolved(**options)


OUT_OF_RANGE = [
    *((name, value) for name in ("hidden", "layers", "vocab") for value in (0, -3)),
    *((name, 0) for name in ("window", "k1", "k2", "batch", "epochs", "steps")),
    ("snapshot_every", 0),
    *((name, -1) for name in ("bptt_truncate", "embedding", "seed")),
    ("seed", 2**63),
    *((name, v) for name in ("clip", "weight_decay") for v in (-0.1, math.nan)),
    *((name, v) for name in ("lr", "minutes") for v in (0.0, -1.0, math.nan, math.inf)),
    *(("dropout", value) for value in (-0.1, 1.0, math.nan)),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} must be"):
        check(Options(**{name: value}))


def test_what_just_is_in_range():
    check(Options(dropout=0.999, seed=2**63 - 1, clip=0.0, bptt_truncate=0))
    check(Options(k1=64, k2=1, embedding=0, weight_decay=0.0, lr=1e-9))
