"""The tutorial's recurrent language model in NumPy: what all faster code must equal.

Every line is an equation, nothing is batched or cached, and everything is float64.
A sentence is a sequence of word ids `x_0 ... x_{T-1}`; `y_t` is the word that follows
`x_t`. A word enters as a one-hot vector, so `U x_t` is a column of `U`.

Forward, from the zero state `s_{-1} = 0`::

    s_t = tanh(U x_t + W s_{t-1})                                      (1)
    o_t = softmax(V s_t)                                               (2)
    E_t = -log o_t[y_t],    E = sum_t E_t                              (3)

Backward. `1(y)` is one-hot, `*` is elementwise, and `delta_k^(t) = dE_t/dz_k` is the
error of output `t` at the pre-activation `z_k = U x_k + W s_{k-1}` of step `k <= t`::

    dE_t/d(V s_t) = o_t - 1(y_t)                                       (4)
    dE/dV         = sum_t (o_t - 1(y_t)) s_t^T                         (5)
    delta_t^(t)   = V^T (o_t - 1(y_t)) * (1 - s_t^2)                   (6)
    delta_k^(t)   = W^T delta_{k+1}^(t) * (1 - s_k^2)                  (7)
    dE/dW         = sum_t sum_k delta_k^(t) s_{k-1}^T                  (8)
    dE/dU         = sum_t sum_k delta_k^(t) x_k^T                      (9)

In full backpropagation through time `k` runs from `t` down to 0. `bptt_truncate = n`
ends it at `max(0, t - n)`: the error of an output crosses at most `n` recurrences, and
so meets `n + 1` steps.

    >>> model = RNN(word_dim=100, hidden_dim=10)
    >>> model.gradient_check([0, 1, 2, 3], [1, 2, 3, 4])
    True

References: Rumelhart, Hinton & Williams, "Learning representations by back-propagating
errors", 1986; Elman, "Finding structure in time", 1990 (the network); Werbos,
"Backpropagation through time: what it does and how to do it", 1990 (the gradient);
Britz, "Recurrent Neural Networks Tutorial", parts 2 and 3, 2015 (this language model,
its per-output window and its training).
"""

import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, SupportsIndex, final

import numpy as np
from numpy.typing import NDArray

from bptt.errors import GradientError

UNKNOWN_TOKEN: Final = "UNKNOWN_TOKEN"  # noqa: S105
SENTENCE_START: Final = "SENTENCE_START"
SENTENCE_END: Final = "SENTENCE_END"

_SPECIAL: Final = (UNKNOWN_TOKEN, SENTENCE_START, SENTENCE_END)
_WORD_OR_MARK: Final = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")

_Array = NDArray[np.float64]
_Ids = NDArray[np.intp]
_WordIds = Sequence[SupportsIndex] | NDArray[np.integer[Any]]
_IdSentences = Sequence[_WordIds] | NDArray[Any]  # the tutorial keeps object arrays
_Sentence = str | Sequence[str]


@final
@dataclass(frozen=True)
class Vocabulary:
    """The words that a model knows; a word's id is its place in `words`.

    Args:
        words: distinct, with the three special tokens and at least one word besides.

    Raises:
        ValueError: a token is missing, a word stands twice, or there are only tokens.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        twice = [word for word, count in Counter(self.words).items() if count > 1]
        missing = [token for token in _SPECIAL if token not in self.words]
        if twice or missing or self.size <= len(_SPECIAL):
            raise ValueError(
                f"words={reprlib.repr(self.words)}: need the tokens {_SPECIAL} and at "
                f"least one word, each once (missing: {missing}, more than once: "
                f"{reprlib.repr(twice)}); build_vocabulary makes such a tuple"
            )

    @property
    def size(self) -> int:
        """Number of ids, special tokens included: the `word_dim` of a model."""
        return len(self.words)

    @property
    def unknown_id(self) -> int:
        """Id of every word that is not in the vocabulary."""
        return self._ids[UNKNOWN_TOKEN]

    @property
    def start_id(self) -> int:
        """Id of the token before the first word."""
        return self._ids[SENTENCE_START]

    @property
    def end_id(self) -> int:
        """Id of the token after the last word."""
        return self._ids[SENTENCE_END]

    def encode(self, words: _Sentence) -> list[int]:
        """Ids of the words, `unknown_id` where a word is not in the vocabulary.

        Args:
            words: a list of words, taken as they are, or a string, which is
                lower-cased and split into words and punctuation marks.

        Returns:
            One id a word; no token is added.

        Raises:
            TypeError: `words` holds something other than strings.
        """
        return [self._ids.get(word, self.unknown_id) for word in _split(words)]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}


def build_vocabulary(sentences: Iterable[_Sentence], size: int = 8000) -> Vocabulary:
    """The most frequent words of a text; among equals, the first in code point order.

    Args:
        sentences: each a list of words or a string, as for `Vocabulary.encode`.
        size: ids at most, the three special tokens included. A text of fewer words
            gives a smaller vocabulary.

    Returns:
        The special tokens, then words from frequent to rare.

    Raises:
        ValueError: `size` leaves no room for a word, or the sentences hold none, or
            they already hold a start or end token.
        TypeError: `sentences` is one string, or a word is not a string.

    Reference: Britz 2015, part 2 (8000 words).
    """
    size = _integer("size", size, at_least=len(_SPECIAL) + 1)
    counts: Counter[str] = Counter()
    for words in _split_all(sentences):
        counts.update(words)
    del counts[UNKNOWN_TOKEN]  # it may stand in a prepared text, and has its place
    if not counts:
        raise ValueError("sentences hold no word; pass at least one that is not blank")
    by_frequency = sorted(counts, key=lambda word: (-counts[word], word))
    return Vocabulary(_SPECIAL + tuple(by_frequency[: size - len(_SPECIAL)]))


def training_pairs(
    sentences: Iterable[_Sentence], vocabulary: Vocabulary
) -> tuple[list[list[int]], list[list[int]]]:
    """Sentences as `(X, Y)`: inputs, and at each step the word to predict.

    With `w = start, words..., end` in ids, `x` is `w` without its last id and `y` is
    `w` without its first.

    Args:
        sentences: each a list of words or a string, as for `Vocabulary.encode`.
        vocabulary: gives the ids.

    Returns:
        Two lists with one list of ids a sentence; a sentence of `n` words gives `n + 1`
        ids in each.

    Raises:
        ValueError: a sentence is blank or already holds a start or end token.
        TypeError: `sentences` is one string, or a word is not a string.

    Reference: Britz 2015, part 2.
    """
    X, Y = [], []
    for i, words in enumerate(_split_all(sentences)):
        if not words:
            raise ValueError(f"sentences[{i}] has no words; leave blank sentences out")
        ids = [vocabulary.start_id, *vocabulary.encode(words), vocabulary.end_id]
        X.append(ids[:-1])
        Y.append(ids[1:])
    return X, Y


@final
class RNN:
    """The language model of equations (1) and (2), one sentence at a time.

    Attributes:
        U: (hidden_dim, word_dim), word to state, uniform in +-1/sqrt(word_dim).
        V: (word_dim, hidden_dim), state to logits, uniform in +-1/sqrt(hidden_dim).
        W: (hidden_dim, hidden_dim), state to state, uniform in +-1/sqrt(hidden_dim).
        bptt_truncate: recurrences that the error of an output crosses at most.

    Args:
        word_dim: number of words, >= 1.
        hidden_dim: size of the state, >= 1.
        bptt_truncate: >= 0; None, or a number no sentence reaches, is full BPTT.
        seed: of the initial parameters, >= 0.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is too small.

    Reference: Elman 1990; Britz 2015, part 2.
    """

    def __init__(
        self,
        word_dim: int,
        hidden_dim: int = 100,
        bptt_truncate: int | None = 4,
        seed: int = 0,
    ) -> None:
        self.word_dim = _integer("word_dim", word_dim, at_least=1)
        self.hidden_dim = _integer("hidden_dim", hidden_dim, at_least=1)
        self.bptt_truncate = (
            None
            if bptt_truncate is None
            else _integer("bptt_truncate", bptt_truncate, at_least=0)
        )
        rng = np.random.default_rng(_integer("seed", seed, at_least=0))

        def uniform(rows: int, fan_in: int) -> _Array:
            bound = 1 / math.sqrt(fan_in)
            return rng.uniform(-bound, bound, (rows, fan_in))

        self.U = uniform(self.hidden_dim, self.word_dim)
        self.V = uniform(self.word_dim, self.hidden_dim)
        self.W = uniform(self.hidden_dim, self.hidden_dim)

    def forward_propagation(self, x: _WordIds) -> tuple[_Array, _Array]:
        """Probabilities of the next word and states, equations (1) and (2).

        Args:
            x: (T,) integer word ids in [0, word_dim), T >= 1.

        Returns:
            `o`, (T, word_dim) float64, each row sums to 1; and `s`, (T + 1, hidden_dim)
            float64, where `s[t]` is the state after step `t` and the last row is the
            initial state 0, so that `s[t - 1]` also holds at `t = 0`.

        Raises:
            ValueError: `x` is empty, not one-dimensional, or an id is out of range.
            TypeError: the ids are not integers.

        Reference: Elman 1990; Britz 2015, part 2.
        """
        s = self._states(_word_ids("x", x, self.word_dim))
        return np.exp(self._log_probabilities(s)), s

    def predict(self, x: _WordIds) -> _Ids:
        """Most probable next word after each step: the argmax of (2) over words.

        Args:
            x: (T,) integer word ids in [0, word_dim), T >= 1.

        Returns:
            (T,) integer word ids.

        Raises:
            ValueError, TypeError: as `forward_propagation`.

        Reference: Britz 2015, part 2.
        """
        o, _ = self.forward_propagation(x)
        most_probable: _Ids = o.argmax(axis=1)
        return most_probable

    def calculate_total_loss(self, X: _IdSentences, Y: _IdSentences) -> float:
        """Cross-entropy summed over all words of all sentences, equation (3), in nats.

        Args:
            X: sentences, each (T,) integer word ids in [0, word_dim), T >= 1.
            Y: the words to predict, in the lengths of X.

        Returns:
            The sum of `-log o_t[y_t]`. It stays finite where `o_t[y_t]` underflows.

        Raises:
            ValueError: there are no sentences, X and Y differ in number or a pair in
                length, a sentence is empty, or an id is out of range.
            TypeError: the ids are not integers.

        Reference: Britz 2015, part 2.
        """
        return sum(self._sentence_loss(x, y) for x, y in self._pairs(X, Y))

    def calculate_loss(self, X: _IdSentences, Y: _IdSentences) -> float:
        """Mean cross-entropy a word, in nats: about `log(word_dim)` before training.

        Args:
            X: sentences, each (T,) integer word ids in [0, word_dim), T >= 1.
            Y: the words to predict, in the lengths of X.

        Returns:
            `calculate_total_loss(X, Y)` divided by the number of words in Y.

        Raises:
            ValueError, TypeError: as `calculate_total_loss`.

        Reference: Britz 2015, part 2.
        """
        words = sum(len(y) for _, y in self._pairs(X, Y))
        return self.calculate_total_loss(X, Y) / words

    def bptt(self, x: _WordIds, y: _WordIds) -> list[_Array]:
        """Gradients of one sentence's summed cross-entropy, equations (4) to (9).

        Goes back from every output on its own, through at most `bptt_truncate`
        recurrences: O(T * (bptt_truncate + 1)) outer products.

        Args:
            x: (T,) integer word ids in [0, word_dim), T >= 1.
            y: (T,) the words to predict.

        Returns:
            `[dLdU, dLdV, dLdW]`, float64, shaped as U, V and W. `dLdV` is exact under
            every truncation.

        Raises:
            ValueError: x and y differ in length, one is empty, or an id is out of
                range.
            TypeError: the ids are not integers.

        Reference: Werbos 1990; Britz 2015, part 3.
        """
        x, y = self._pair(x, y)
        o, s = self.forward_propagation(x)
        dlogits = o.copy()  # whoever else holds o keeps probabilities
        dlogits[np.arange(len(y)), y] -= 1  # (4)
        dU, dV, dW = (np.zeros_like(P) for P in (self.U, self.V, self.W))
        for t in reversed(range(len(x))):
            dV += np.outer(dlogits[t], s[t])  # (5)
            ds = self.V.T @ dlogits[t]  # dE_t/ds_t
            for k in self._steps_back_from(t):
                delta = ds * (1 - s[k] ** 2)  # (6) at k = t, (7) further back
                dW += np.outer(delta, s[k - 1])  # (8)
                dU[:, x[k]] += delta  # (9)
                ds = self.W.T @ delta  # dE_t/ds_{k-1}
        return [dU, dV, dW]

    def gradient_check(
        self,
        x: _WordIds,
        y: _WordIds,
        h: float = 1e-5,
        error_threshold: float = 0.01,
    ) -> bool:
        """Compare `bptt` with `(E(P + h) - E(P - h)) / 2h` at every entry P of U, V, W.

        The relative error of an entry is `|a - n| / (|a| + |n|)`. A difference that
        the central difference itself cannot resolve, for rounding of E and for its own
        error of order h^2, is no evidence against `bptt` and passes. Costs two forward
        passes an entry, and leaves the parameters as they were, bit for bit.

        Args:
            x: (T,) integer word ids in [0, word_dim), T >= 1, with `bptt_truncate`
                None or at least T - 1: a truncated gradient is not that of the loss.
            y: (T,) the words to predict.
            h: step, > 0.
            error_threshold: largest relative error that passes, in (0, 1).

        Returns:
            True.

        Raises:
            GradientError: an entry disagrees; it names the entry and all numbers.
            ValueError: this sentence is truncated, `h` or `error_threshold` is out of
                range, or as `bptt`.
            TypeError: as `bptt`.

        Reference: Britz 2015, part 2.
        """
        x, y = self._pair(x, y)
        self._check_untruncated(len(x))
        h = _number("h", h, below=math.inf)
        error_threshold = _number("error_threshold", error_threshold, below=1.0)
        rounding = 8 * np.finfo(np.float64).eps * (self._sentence_loss(x, y) + len(x))
        resolution = rounding / h + h**2
        parameters = {"U": self.U, "V": self.V, "W": self.W}
        for (name, P), dP in zip(parameters.items(), self.bptt(x, y), strict=True):
            for entry in np.ndindex(P.shape):
                above, below = self._losses_around(P, entry, h, x, y)
                a, n = float(dP[entry]), (above - below) / (2 * h)
                if abs(a - n) <= resolution:
                    continue
                error = abs(a - n) / (abs(a) + abs(n))
                if not error <= error_threshold:  # so that nan fails
                    raise GradientError(
                        f"d{name}{list(entry)}: bptt gives {a!r}, the central "
                        f"difference {n!r}; relative error {error:.3g} > "
                        f"{error_threshold:g}; loss {above!r} at +h, {below!r} at -h, "
                        f"h = {h:g}"
                    )
        return True

    def sgd_step(self, x: _WordIds, y: _WordIds, learning_rate: float) -> None:
        """One step of gradient descent on one sentence: `P -= learning_rate * dE/dP`.

        Args:
            x: (T,) integer word ids in [0, word_dim), T >= 1.
            y: (T,) the words to predict.
            learning_rate: > 0; of the summed loss, so long sentences move further.

        Raises:
            ValueError: `learning_rate` is not positive and finite, or as `bptt`.
            TypeError: as `bptt`.

        Reference: Rumelhart, Hinton & Williams 1986; Britz 2015, part 2.
        """
        learning_rate = _number("learning_rate", learning_rate, below=math.inf)
        dU, dV, dW = self.bptt(x, y)
        self.U -= learning_rate * dU
        self.V -= learning_rate * dV
        self.W -= learning_rate * dW

    def generate_sentence(
        self,
        vocabulary: Vocabulary,
        *,
        seed: int | np.random.Generator = 0,
        max_length: int = 100,
        min_length: int = 1,
    ) -> list[str]:
        """Sample a sentence word by word from (2), from the start token to the end.

        The unknown and the start token have probability 0 here, and so has the end
        token before `min_length` words; the others share theirs in proportion.

        Args:
            vocabulary: of `word_dim` words.
            seed: >= 0, or a generator, to draw several sentences in turn.
            max_length: words after which the sentence is cut, >= 1.
            min_length: words before which it does not end, from 0 to max_length.

        Returns:
            The words, without start and end token; the same for the same seed.

        Raises:
            ValueError: the vocabulary's size is not `word_dim`, or a number is out of
                range.
            TypeError: a number is not an integer.

        Reference: Britz 2015, part 2.
        """
        if vocabulary.size != self.word_dim:
            raise ValueError(
                f"vocabulary.size={vocabulary.size} is not word_dim={self.word_dim}; "
                f"pass the vocabulary that the model was trained with"
            )
        max_length = _integer("max_length", max_length, at_least=1)
        if _integer("min_length", min_length, at_least=0) > max_length:
            raise ValueError(f"min_length={min_length} is over {max_length=}; lower it")
        if not isinstance(seed, np.random.Generator):
            seed = np.random.default_rng(_integer("seed", seed, at_least=0))
        word, s = vocabulary.start_id, np.zeros(self.hidden_dim)
        sentence: list[str] = []
        while len(sentence) < max_length:
            s = self._next_state(word, s)
            logits = self.V @ s
            # on logits, the rest is left to sum to 1 even where it had underflowed
            logits[[vocabulary.unknown_id, vocabulary.start_id]] = -np.inf
            if len(sentence) < min_length:
                logits[vocabulary.end_id] = -np.inf
            word = int(seed.choice(self.word_dim, p=np.exp(_log_softmax(logits))))
            if word == vocabulary.end_id:
                break
            sentence.append(vocabulary.words[word])
        return sentence

    def _next_state(self, word: int, s: _Array) -> _Array:
        return np.tanh(self.U[:, word] + self.W @ s)  # (1)

    def _states(self, x: _Ids) -> _Array:
        s = np.zeros((len(x) + 1, self.hidden_dim))
        for t, word in enumerate(x):
            s[t] = self._next_state(int(word), s[t - 1])
        return s

    def _log_probabilities(self, s: _Array) -> _Array:
        return _log_softmax(s[:-1] @ self.V.T)  # log of (2)

    def _sentence_loss(self, x: _Ids, y: _Ids) -> float:
        log_o = self._log_probabilities(self._states(x))
        return float(-log_o[np.arange(len(y)), y].sum())  # (3)

    def _steps_back_from(self, t: int) -> range:
        n = t if self.bptt_truncate is None else self.bptt_truncate
        return range(t, max(0, t - n) - 1, -1)

    def _losses_around(
        self, P: _Array, entry: tuple[int, ...], h: float, x: _Ids, y: _Ids
    ) -> tuple[float, float]:
        value = P[entry]
        try:
            P[entry] = value + h
            above = self._sentence_loss(x, y)
            P[entry] = value - h
            below = self._sentence_loss(x, y)
        finally:
            P[entry] = value  # not by adding h again, which would round
        return above, below

    def _check_untruncated(self, steps: int) -> None:
        if self.bptt_truncate is not None and self.bptt_truncate < steps - 1:
            raise ValueError(
                f"bptt_truncate={self.bptt_truncate} truncates this sentence of "
                f"{steps} words, and a truncated gradient differs from that of the "
                f"loss by design; set bptt_truncate to None or to at least "
                f"{steps - 1}, or check a sentence of at most "
                f"{self.bptt_truncate + 1} words"
            )

    def _pair(self, x: _WordIds, y: _WordIds) -> tuple[_Ids, _Ids]:
        x, y = (_word_ids(n, ids, self.word_dim) for n, ids in (("x", x), ("y", y)))
        if len(x) != len(y):
            raise ValueError(
                f"x has {len(x)} words and y has {len(y)}; y needs one word for each "
                f"of x, the one that follows it"
            )
        return x, y

    def _pairs(self, X: _IdSentences, Y: _IdSentences) -> list[tuple[_Ids, _Ids]]:
        if len(X) == 0 or len(X) != len(Y):
            raise ValueError(
                f"X has {len(X)} sentences and Y has {len(Y)}; need equally many, and "
                f"at least one"
            )
        return [self._pair(x, y) for x, y in zip(X, Y, strict=True)]


@dataclass(frozen=True)
class Measurement:
    """The state of a training run at one moment.

    Attributes:
        examples_seen: sentences trained on so far, counted in every epoch.
        epoch: epochs completed.
        loss: mean cross-entropy a word over all sentences, in nats.
        learning_rate: the rate from here on, after halving if it was halved.
    """

    examples_seen: int
    epoch: int
    loss: float
    learning_rate: float


def train_with_sgd(
    model: RNN,
    X: _IdSentences,
    Y: _IdSentences,
    learning_rate: float = 0.005,
    epochs: int = 100,
    evaluate_loss_after: int = 5,
    on_loss: Callable[[Measurement], object] | None = None,
) -> list[Measurement]:
    """Train by plain SGD: one sentence a step, in the given order, every epoch alike.

    The loss is measured before the first epoch and after every `evaluate_loss_after`
    epochs. Where it rose since the last measurement, the rate is halved.

    Args:
        model: trained in place.
        X: sentences, each (T,) integer word ids in [0, word_dim), T >= 1.
        Y: the words to predict, in the lengths of X.
        learning_rate: at the start, > 0.
        epochs: passes over X, >= 1.
        evaluate_loss_after: epochs from one measurement to the next, >= 1.
        on_loss: called with each measurement as it is made.

    Returns:
        The measurements, in order: `1 + epochs // evaluate_loss_after` of them.

    Raises:
        ValueError: a number is out of range, or as `RNN.calculate_loss`.
        TypeError: a number is of the wrong type, or as `RNN.calculate_loss`.

    Reference: Britz 2015, part 2.
    """
    learning_rate = _number("learning_rate", learning_rate, below=math.inf)
    epochs = _integer("epochs", epochs, at_least=1)
    every = _integer("evaluate_loss_after", evaluate_loss_after, at_least=1)
    history: list[Measurement] = []
    for epoch in range(epochs + 1):
        if epoch % every == 0:
            loss = model.calculate_loss(X, Y)
            if history and loss > history[-1].loss:
                learning_rate /= 2
            history.append(Measurement(epoch * len(X), epoch, loss, learning_rate))
            if on_loss is not None:
                on_loss(history[-1])
        if epoch < epochs:
            for x, y in zip(X, Y, strict=True):
                model.sgd_step(x, y, learning_rate)
    return history


def _log_softmax(logits: _Array) -> _Array:
    # the largest becomes 0, so that exp cannot overflow
    shifted: _Array = logits - logits.max(axis=-1, keepdims=True)
    log_total: _Array = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted - log_total


def _split(sentence: _Sentence) -> list[str]:
    if isinstance(sentence, str):
        return _WORD_OR_MARK.findall(sentence.lower())
    for word in sentence:
        if not isinstance(word, str):
            raise TypeError(
                f"word {word!r} in {reprlib.repr(sentence)} is not a str; pass a "
                f"sentence as one string or as a list of strings"
            )
    return list(sentence)


def _split_all(sentences: Iterable[_Sentence]) -> Iterable[list[str]]:
    if isinstance(sentences, str):
        raise TypeError(
            f"sentences={reprlib.repr(sentences)} is one str; pass a list of sentences"
        )
    for i, sentence in enumerate(sentences):
        words = _split(sentence)
        for token in (SENTENCE_START, SENTENCE_END):
            if token in words:
                raise ValueError(
                    f"sentences[{i}]={reprlib.repr(sentence)} already holds {token}; "
                    f"pass the words alone"
                )
        yield words


def _word_ids(name: str, ids: _WordIds, word_dim: int) -> _Ids:
    shown = f"{name}={reprlib.repr(ids)}"
    try:
        array = np.asarray(ids)
    except ValueError as error:  # lists of unlike lengths
        raise ValueError(f"{shown} is not one sentence of word ids: {error}") from error
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"{shown} has shape {array.shape}; need one sentence of at least one word "
            f"id, so leave empty sentences out and pass several one by one"
        )
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{shown} holds {array.dtype}; need integer word ids, as from "
            f"Vocabulary.encode"
        )
    outside = array[(array < 0) | (array >= word_dim)]
    if outside.size:
        raise ValueError(
            f"{shown} holds the word id {outside[0]}; ids lie in [0, {word_dim}), so "
            f"encode with a vocabulary of word_dim={word_dim} words"
        )
    return array.astype(np.intp)


def _integer(name: str, value: object, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}={value!r} is not an integer; pass one >= {at_least}")
    if value < at_least:
        raise ValueError(f"{name}={value} is too small; pass an integer >= {at_least}")
    return int(value)


def _number(name: str, value: object, below: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise TypeError(f"{name}={value!r} is not a number; pass one in (0, {below:g})")
    if not 0 < value < below:
        raise ValueError(f"{name}={value!r} is out of range; need 0 < {name} < {below}")
    return float(value)
