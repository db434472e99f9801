"""The numbers of a network of the tutorial's kind, whatever holds them elsewhere."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from bptt import tutorial
from bptt.errors import InputError
from bptt.language_model import LanguageModel

Array = NDArray[np.float64]
Ids = tuple[int, ...]

START_LABEL = "<start>"
SMALL_WORDS = (START_LABEL, "the", "cat", "dog", "sat", "down")
SMALL_HIDDEN = 2
SMALL_SEED = 9  # its terms fall slowly enough to be seen


@final
@dataclass(frozen=True, eq=False)
class Network:
    """`s_t = tanh(U x_t + W s_{t-1} + b)`, `o_t = softmax(V s_t + c)`, in float64.

    Attributes:
        U: (hidden, inputs), word to state.
        W: (hidden, hidden), state to state.
        V: (vocab, hidden), state to logits.
        b: (hidden,), zeros in the tutorial.
        c: (vocab,), zeros in the tutorial.
        embedding: (vocab, inputs), a row a word; None for one-hot words, so that
            inputs = vocab.
        words: the vocabulary, as it is to be shown.
        tied: whether V and the embedding are one matrix, whose gradient then has more
            parts than that of V.

    Raises:
        ValueError: the shapes do not fit each other, or a number is not finite.

    Reference: Elman, "Finding structure in time", 1990; Britz 2015, part 2.
    """

    U: Array
    W: Array
    V: Array
    b: Array
    c: Array
    embedding: Array | None
    words: tuple[str, ...]
    tied: bool = False

    def __post_init__(self) -> None:
        hidden, vocab = len(self.W), len(self.words)
        inputs = vocab if self.embedding is None else self.embedding.shape[1]
        shapes = {
            "U": (hidden, inputs),
            "W": (hidden, hidden),
            "V": (vocab, hidden),
            "b": (hidden,),
            "c": (vocab,),
            "embedding": (vocab, inputs),
        }
        for name, shape in shapes.items():
            array: Array | None = getattr(self, name)
            if array is None:
                continue
            if array.shape != shape:
                raise ValueError(
                    f"{name} must have shape {shape}, for {hidden} units, {vocab} "
                    f"words and inputs of width {inputs}; got {array.shape}"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"{name} has numbers that are not finite")

    @property
    def hidden(self) -> int:
        """Units of the state."""
        return len(self.W)

    @property
    def vocab(self) -> int:
        """Words."""
        return len(self.words)

    @property
    def has_biases(self) -> bool:
        """Whether `b` or `c` is not all zero."""
        return bool(self.b.any() or self.c.any())

    def inputs(self, x: Ids) -> Array:
        """The vectors `x_t` (time, inputs) of some words."""
        if self.embedding is not None:
            return self.embedding[list(x)]
        one_hot = np.zeros((len(x), self.vocab))
        one_hot[np.arange(len(x)), list(x)] = 1
        return one_hot


def small_network() -> Network:
    """The tutorial's network of 2 units and 6 words, drawn from a fixed seed."""
    drawn = tutorial.RNN(len(SMALL_WORDS), SMALL_HIDDEN, seed=SMALL_SEED)
    return Network(
        U=drawn.U,
        W=drawn.W,
        V=drawn.V,
        b=np.zeros(SMALL_HIDDEN),
        c=np.zeros(len(SMALL_WORDS)),
        embedding=None,
        words=SMALL_WORDS,
    )


def network_of(model: LanguageModel) -> Network:
    """The numbers of a trained model; its two biases of the recurrence are one here.

    Raises:
        InputError: it is not one tanh layer, or its weights are not finite.
    """
    config, recurrent = model.config, model.recurrent
    if config.cell != "rnn" or config.layers != 1:
        layers = f"{config.layers} layer" + "s" * (config.layers > 1)
        raise InputError(
            f"the worked example is that of one tanh layer, and this network has "
            f"{layers} of cell {config.cell}; train one with --cell rnn --layers 1"
        )
    if model.tokenizer is None:
        raise InputError("the model has no tokenizer; give one to LanguageModel")
    tokens = list(model.tokenizer.vocabulary.tokens)
    for at, shown in (
        (model.tokenizer.unknown_id, "<unk>"),
        (model.tokenizer.start_id, START_LABEL),
        (model.tokenizer.end_id, "<end>"),
    ):
        tokens[at] = shown
    b, c = np.zeros(config.hidden), np.zeros(config.vocab)
    if config.bias:
        b = _array(recurrent.bias_ih_l0) + _array(recurrent.bias_hh_l0)
        c = _array(model.decoder.bias)
    try:
        return Network(
            U=_array(recurrent.weight_ih_l0),
            W=_array(recurrent.weight_hh_l0),
            V=_array(model.decoder.weight),
            b=b,
            c=c,
            embedding=(
                None if model.embedding is None else _array(model.embedding.weight)
            ),
            words=tuple(tokens),
            tied=config.tied,
        )
    except ValueError as error:
        raise InputError(f"the network cannot be explained: {error}") from error


def _array(parameter: object) -> Array:
    assert isinstance(parameter, torch.Tensor)
    array: Array = parameter.detach().cpu().double().numpy()
    return array
