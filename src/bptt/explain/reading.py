"""A sentence as a network reads it: the words it is given and the words to guess."""

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass

from bptt.errors import InputError
from bptt.explain.network import Ids, Network, network_of, small_network
from bptt.language_model import LanguageModel
from bptt.text import Tokenizer

SMALL_SENTENCE = "the cat sat down"
MAX_WORDS = 20
_WORDS = 4  # of a sentence that nobody has given
_SEEDS = 32


@dataclass(frozen=True, eq=False)
class Reading:
    """A network and a sentence.

    Before each of its words the network has read those before it, so a sentence of
    `n` words makes `n` steps: `x` is what precedes it and all but its last word, `y`
    its words.

    Attributes:
        network: the network.
        x: ids that it reads.
        y: ids that it should guess after each of `x`.
    """

    network: Network
    x: Ids
    y: Ids


def read_by_small_network(sentence: str = SMALL_SENTENCE) -> Reading:
    """A sentence of the few words that the small network knows.

    Raises:
        InputError: the sentence has a word that it does not know, or too few or too
            many words.
    """
    network = small_network()
    known = {word: at for at, word in enumerate(network.words) if at}
    words = sentence.lower().split()
    unknown = [word for word in words if word not in known]
    if unknown:
        raise InputError(
            f"sentence has {_named(unknown)}, which the network does not know; it "
            f"knows {', '.join(known)}"
        )
    return _reading(network, 0, [known[word] for word in words])


def read_by_model(model: LanguageModel, sentence: str | None = None) -> Reading:
    """A sentence of a trained model's tokens, in its weights, without dropout.

    Args:
        model: of any cell and number of layers.
        sentence: words, or characters if the model's tokens are such; None takes four
            that the model makes up.

    Raises:
        InputError: the model's weights are not finite, or the sentence has a token
            that it does not know, or too few or too many tokens.
    """
    network = network_of(model)
    assert model.tokenizer is not None
    if sentence is None:
        return _reading(network, model.first_id, _made_up(model))
    ids = [int(i) for i in model.tokenizer.encode(sentence)]
    if model.tokenizer.unknown_id in ids:
        unknown = _unknown_in(sentence, model.tokenizer)
        raise InputError(
            f"sentence has {_named(unknown)}, which the network does not know; use "
            "what stands in the text that it was trained on"
        )
    return _reading(network, model.first_id, ids)


def _reading(network: Network, first: int, ids: list[int]) -> Reading:
    if not 2 <= len(ids) <= MAX_WORDS:
        raise InputError(
            f"sentence must have from 2 to {MAX_WORDS} words or tokens; got {len(ids)}"
        )
    return Reading(network, (first, *ids[:-1]), tuple(ids))


def _made_up(model: LanguageModel) -> list[int]:
    """The first four tokens of the model's own that make four; else common ones."""
    assert model.tokenizer is not None
    for seed in range(_SEEDS):
        ids = list(model.sample([], _WORDS, 1.0, seed))
        if len(ids) == _WORDS:
            return ids
    usual = range(model.tokenizer.end_id + 1, model.tokenizer.size)
    return [usual[at % len(usual)] for at in range(_WORDS)]


def _unknown_in(sentence: str, tokenizer: Tokenizer) -> list[str]:
    parts: Iterable[str] = sentence if tokenizer.level == "char" else sentence.split()
    return [part for part in parts if tokenizer.unknown_id in tokenizer.encode(part)]


def _named(unknown: list[str]) -> str:
    """The first few, escaped: they come from anywhere."""
    distinct = list(dict.fromkeys(unknown))
    more = f" and {len(distinct) - 3} more" if len(distinct) > 3 else ""
    return ", ".join(map(reprlib.repr, distinct[:3])) + more
