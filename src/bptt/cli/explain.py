"""`bptt explain`: the worked example as JSON, or as a page of a terminal."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.cli.explain_page import Page
from bptt.cli.explain_stack import StackPage
from bptt.cli.output import write_json
from bptt.cli.sheet import Sheet
from bptt.errors import InputError
from bptt.explain import (
    Step,
    Term,
    Truncated,
    WorkedExample,
    read_by_model,
    read_by_small_network,
    worked_example,
)
from bptt.language_model import LanguageModel

_MOST_ENTRIES = 4096  # of a matrix in the JSON; of a larger one, its norm


def run(
    model: LanguageModel | None,
    sentence: str | None,
    layer: int | None,
    *,
    json: bool,
) -> int:
    """Explain a sentence in the small network, or in a trained one; the exit code."""
    if model is not None:
        reading = read_by_model(model, sentence)
    elif sentence is None:
        reading = read_by_small_network()
    else:
        reading = read_by_small_network(sentence)
    try:
        example = worked_example(reading, layer)
    except ValueError as error:
        raise InputError(str(error)) from error
    if json:
        write_json(record(example))
    elif example.network.is_the_tutorials:
        Page(Sheet(), example).print()
    else:
        StackPage(Sheet(), example).print()
    return 0


def record(example: WorkedExample) -> dict[str, Any]:
    """All numbers, as docs/explain.md lists them.

    A matrix of more than 4096 numbers is given by its shape and norm alone.
    """
    network, words = example.network, example.network.words
    layer = network.layers[example.layer - 1]
    weights = {name: getattr(layer, name) for name in ("U", "W", "b_ih", "b_hh")}
    weights |= {name: getattr(network, name) for name in ("V", "c", "embedding")}
    return {
        "network": {
            "cell": type(network.cell).__name__,
            "layers": len(network.layers),
            "layer": example.layer,
            "hidden": network.hidden,
            "vocab": network.vocab,
            "words": list(words) if network.vocab <= _MOST_ENTRIES else None,
            **{
                name: None if given is None else _matrix(given.numpy())
                for name, given in weights.items()
            },
        },
        "sentence": [words[y] for y in example.reading.y],
        "t": example.t,
        "steps": [_step(step, example) for step in example.steps],
        "dV": {
            "error": example.dlogits.tolist(),
            "h": example.steps[-1].h.tolist(),
            "sum": _matrix(example.dV),
            "engine": _matrix(example.engine.V),
        },
        "dW": {"sum": _matrix(example.dW), "engine": _matrix(example.engine.W)},
        "dU": {"sum": _matrix(example.dU), "engine": _matrix(example.engine.U)},
        "terms": [_term(term, example) for term in example.terms],
        "truncations": [_truncated(cut) for cut in example.truncated],
        "separate_W": {
            "gradients": [
                {"k": term.k, "dW": _matrix(dW)}
                for term, dW in zip(example.terms, example.unshared, strict=True)
            ],
            "sum": _matrix(example.sum_of_unshared),
        },
        "largest_differences": vars(example.differences),
    }


def _step(step: Step, example: WorkedExample) -> dict[str, Any]:
    network, words = example.network, example.network.words
    return {
        "t": step.t,
        "x": words[step.x],
        "y": words[step.y],
        "x_id": step.x,
        "y_id": step.y,
        "s": step.s.tolist(),
        "h": step.h.tolist(),
        "gates": dict(zip(network.gates, step.gates.tolist(), strict=True)),
        "o": step.o.tolist(),
        "E": step.E,
    }


def _term(term: Term, example: WorkedExample) -> dict[str, Any]:
    return {
        "k": term.k,
        "jacobian": _matrix(term.jacobian),
        "product": _matrix(term.product),
        "jacobian_2_norm": term.stretch_of_step,
        "product_2_norm": term.stretch,
        "part_2_norm": example.stretch_of_part(term),
        "carried": None if term.carried is None else term.carried.tolist(),
        "ds": term.ds.tolist(),
        "delta": term.delta.tolist(),
        "hidden_delta": term.hidden_delta.tolist(),
        "h_before": term.h_before.tolist(),
        "dW": _matrix(term.dW),
        "dU": _matrix(term.dU),
    }


def _truncated(cut: Truncated) -> dict[str, Any]:
    return {
        "bptt_truncate": cut.n,
        "steps_kept": list(cut.kept),
        "left_away_dW": _matrix(cut.dW),
        "left_away_norm_W": cut.left_W,
        "left_away_norm_U": cut.left_U,
        "bias_W": cut.bias_W,
        "bias_U": cut.bias_U,
    }


def _matrix(array: NDArray[np.float64] | None) -> dict[str, Any] | None:
    if array is None:
        return None
    return {
        "shape": list(array.shape),
        "norm": float(np.linalg.norm(array)),
        "entries": array.tolist() if array.size <= _MOST_ENTRIES else None,
    }
