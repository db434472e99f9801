"""The numbers of a recurrent language model, whatever holds them elsewhere."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bptt import tutorial
from bptt.cells import Cell, GRUCell, LSTMCell, ReLUCell, TanhCell
from bptt.errors import InputError
from bptt.language_model import LanguageModel
from bptt.through_time import Layer

Array = NDArray[np.float64]
Ids = tuple[int, ...]

START_LABEL = "<start>"
SMALL_WORDS = (START_LABEL, "the", "cat", "dog", "sat", "down")
SMALL_HIDDEN = 2
SMALL_SEED = 9  # its terms fall slowly enough to be seen

GATES: dict[type[Cell], str] = {
    TanhCell: "",
    ReLUCell: "",
    LSTMCell: "ifgo",
    GRUCell: "rzn",
}
# What carries a part of the state from step to step past all weights.
CARRIERS: dict[type[Cell], tuple[str, str]] = {
    LSTMCell: ("f", "c"),
    GRUCell: ("z", "h"),
}
_CELLS: dict[str, Cell] = {"rnn": TanhCell(), "gru": GRUCell(), "lstm": LSTMCell()}


@final
@dataclass(frozen=True, eq=False)
class Network:
    """`s_t = step(x_t, s_{t-1})`, `o_t = softmax(V h_t + c)`, all in float64.

    The state `s` is that of all layers, from the bottom one on: of each its `h`, or its
    `h` and `c`. The softmax reads `h` of the last layer. With one tanh layer it is the
    tutorial's, `s_t = tanh(U x_t + W s_{t-1} + b)`.

    Attributes:
        layers: bottom first, of one kind of cell and one width, with biases, which may
            be zeros.
        V: (vocab, hidden), last layer to logits.
        c: (vocab,), zeros in the tutorial.
        embedding: (vocab, inputs), a row a word; None for one-hot words, so that
            inputs = vocab.
        words: the vocabulary, as it is to be shown.
        tied: whether V and the embedding are one matrix, whose gradient then has more
            parts than that of V.

    Raises:
        ValueError: the cells are of no known kind or of several, the shapes do not fit
            each other, or a number is not finite.

    Reference: Elman, "Finding structure in time", 1990; Britz 2015, part 2.
    """

    layers: tuple[Layer, ...]
    V: Tensor
    c: Tensor
    embedding: Tensor | None
    words: tuple[str, ...]
    tied: bool = False

    def __post_init__(self) -> None:
        kinds = {type(layer.cell) for layer in self.layers}
        if len(kinds) != 1 or not kinds <= GATES.keys():
            known = ", ".join(kind.__name__ for kind in GATES)
            given = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ValueError(
                f"layers must be at least one, all of one of the cells {known}; got "
                f"{given or 'none'}"
            )
        inputs = self.vocab if self.embedding is None else self.embedding.shape[1]
        shapes = {
            "V": (self.vocab, self.hidden),
            "c": (self.vocab,),
            "embedding": (self.vocab, inputs),
        }
        for name, shape in shapes.items():
            self._check(name, getattr(self, name), shape)
        rows = self.cell.gates * self.hidden
        for at, layer in enumerate(self.layers, 1):
            given = f" of layer {at}" if len(self.layers) > 1 else ""
            width = inputs if at == 1 else self.hidden
            self._check(f"U{given}", layer.U, (rows, width))
            self._check(f"W{given}", layer.W, (rows, self.hidden))
            self._check(f"b_ih{given}", layer.b_ih, (rows,))
            self._check(f"b_hh{given}", layer.b_hh, (rows,))

    def _check(self, name: str, given: Tensor | None, shape: tuple[int, ...]) -> None:
        if given is None and name == "embedding":
            return
        found = None if given is None else tuple(given.shape)
        if given is None or found != shape:
            raise ValueError(
                f"{name} must have shape {shape}, for {self.hidden} units and "
                f"{self.vocab} words; got {found}"
            )
        if given.dtype != torch.float64:
            raise ValueError(f"{name} must be float64; got {given.dtype}")
        if not bool(torch.isfinite(given).all()):
            raise ValueError(f"{name} has numbers that are not finite")

    @property
    def cell(self) -> Cell:
        """What one step of a layer computes."""
        return self.layers[0].cell

    @property
    def gates(self) -> str:
        """The gates' letters in torch's order; none for an Elman cell."""
        return GATES[type(self.cell)]

    @property
    def carrier(self) -> tuple[str, str] | None:
        """The gate that carries a part of the state past all weights, and that part."""
        return CARRIERS.get(type(self.cell))

    @property
    def hidden(self) -> int:
        """Units of a layer."""
        return self.layers[0].W.shape[-1]

    @property
    def parts(self) -> str:
        """The letters of the parts of a layer's state, `h` or `hc`."""
        return "hc"[: self.cell.state_parts]

    @property
    def state(self) -> int:
        """Numbers in the state."""
        return len(self.layers) * len(self.parts) * self.hidden

    @property
    def vocab(self) -> int:
        """Words."""
        return len(self.words)

    @property
    def has_biases(self) -> bool:
        """Whether a bias is not all zero."""
        given = [b for layer in self.layers for b in (layer.b_ih, layer.b_hh)]
        return any(b is not None and bool(b.any()) for b in (*given, self.c))

    @property
    def is_the_tutorials(self) -> bool:
        """Whether it is one tanh layer, with biases or without."""
        return len(self.layers) == 1 and isinstance(self.cell, TanhCell)

    def part(self, layer: int, name: str) -> slice:
        """Where `h` or `c` of a layer, counted from 1, stands in the state."""
        at = (layer - 1) * len(self.parts) + self.parts.index(name)
        return slice(at * self.hidden, (at + 1) * self.hidden)

    def inputs(self, x: Ids) -> Tensor:
        """The vectors (time, inputs) that the first layer reads of some words."""
        if self.embedding is not None:
            return self.embedding[list(x)]
        one_hot = torch.zeros(len(x), self.vocab, dtype=torch.float64)
        one_hot[torch.arange(len(x)), list(x)] = 1
        return one_hot


def small_network() -> Network:
    """The tutorial's network of 2 units and 6 words, drawn from a fixed seed."""
    drawn = tutorial.RNN(len(SMALL_WORDS), SMALL_HIDDEN, seed=SMALL_SEED)
    return tutorial_network(drawn, SMALL_WORDS)


def tutorial_network(rnn: tutorial.RNN, words: tuple[str, ...]) -> Network:
    """The numbers of the tutorial's network, which has no biases."""
    U, W, V = (torch.tensor(matrix) for matrix in (rnn.U, rnn.W, rnn.V))
    b = U.new_zeros(len(U))
    return Network(
        layers=(Layer(TanhCell(), U, W, b, b),),
        V=V,
        c=V.new_zeros(len(V)),
        embedding=None,
        words=words,
    )


def network_of(model: LanguageModel) -> Network:
    """The numbers of a trained model.

    Raises:
        InputError: its weights are not finite, or it has no tokenizer.
    """
    config, recurrent = model.config, model.recurrent
    if model.tokenizer is None:
        raise InputError("the model has no tokenizer; give one to LanguageModel")
    tokens = list(model.tokenizer.vocabulary.tokens)
    for at, shown in (
        (model.tokenizer.unknown_id, "<unk>"),
        (model.tokenizer.start_id, START_LABEL),
        (model.tokenizer.end_id, "<end>"),
    ):
        tokens[at] = shown
    try:
        return Network(
            layers=tuple(
                _layer(recurrent, _CELLS[config.cell], at)
                for at in range(config.layers)
            ),
            V=_double(model.decoder.weight),
            c=(
                _double(model.decoder.bias)
                if config.bias
                else torch.zeros(config.vocab, dtype=torch.float64)
            ),
            embedding=(
                None if model.embedding is None else _double(model.embedding.weight)
            ),
            words=tuple(tokens),
            tied=config.tied,
        )
    except ValueError as error:
        raise InputError(f"the network cannot be explained: {error}") from error


def _layer(recurrent: torch.nn.RNNBase, cell: Cell, at: int) -> Layer:
    U, W, *biases = (_double(weight) for weight in recurrent.all_weights[at])
    return Layer(cell, U, W, *(biases or [U.new_zeros(len(U))] * 2))


def _double(parameter: Tensor) -> Tensor:
    return parameter.detach().cpu().double()
