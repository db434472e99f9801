"""Batches to train on, each a pure function of the corpus, the seed and its step.

There is no iterator whose state would have to be saved: a run that resumes at a step
asks for the batch of that step. Arrays are time-major, (time, batch).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from bptt.errors import InputError
from bptt.text.corpus import Sentences

IGNORE = -100  # the target that counts for nothing, as in torch's cross-entropy

_POOL = 50  # batches whose sentences are sorted by length together


@dataclass(frozen=True, eq=False)
class Batch:
    """A segment of the corpus: what the network reads and what it should predict.

    Attributes:
        inputs: Ids, (time, batch); a valid id even where the target is `IGNORE`.
        targets: The ids that follow, (time, batch), or `IGNORE` where there is none
            or where it is not to be counted.
        starts: Whether the state before the first step is zero.
        next_start: The step of this segment at which the next one begins: the state
            before that step is the one to hand on. It is the length where nothing
            overlaps.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    starts: bool
    next_start: int

    @property
    def tokens(self) -> int:
        """The number of predictions that count; it may be 0."""
        return int(np.count_nonzero(self.targets != IGNORE))


@dataclass(frozen=True, eq=False)
class Rows:
    """What each row of a batch reads: `ids[begin]` to `ids[stop]`.

    The predictions that count are those made on reading `ids[first]` to
    `ids[stop - 1]`; those before `first` only bring the state there.
    """

    begin: NDArray[np.int64]
    first: NDArray[np.int64]
    stop: NDArray[np.int64]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "Rows":
        return Rows(self.begin[rows], self.first[rows], self.stop[rows])

    def __len__(self) -> int:
        return len(self.begin)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The steps of each row."""
        return self.stop - self.begin

    def read(
        self,
        ids: NDArray[np.int32],
        steps: range,
        *,
        starts: bool,
        next_start: int,
    ) -> Batch:
        """The batch of these steps of all rows; a row that has ended is padded."""
        at = self.begin + np.arange(steps.start, steps.stop)[:, None]
        counted = (self.first <= at) & (at < self.stop)
        # Padding repeats the row's last id, which for a sentence is its end token.
        inputs = ids[np.minimum(at, self.stop)].astype(np.int64)
        targets = ids[np.minimum(at + 1, self.stop)].astype(np.int64)
        return Batch(inputs, np.where(counted, targets, IGNORE), starts, next_start)


def fit_batch(tokens: int, batch: int, window: int) -> int:
    """The most parallel streams, up to `batch`, that have one window each.

    Args:
        tokens: The predictions that the corpus allows, `Stream.tokens`.
        batch: The number of streams wanted.
        window: The steps of a window.

    Raises:
        InputError: Not even one window fits.
    """
    check_at_least("batch", batch, 1)
    check_at_least("window", window, 1)
    if tokens < window:
        raise InputError(
            f"the text allows {max(tokens, 0)} predictions, fewer than one window of "
            f"{window} steps; give a smaller --window or more text"
        )
    return min(batch, tokens // window)


@dataclass(frozen=True, eq=False)
class StreamBatches:
    """A corpus as parallel streams, read window by window with the state carried on.

    An epoch cuts a run of `batch * steps_per_epoch * window` predictions out of the
    corpus, gives each stream an equal contiguous part, and counts each of them in
    exactly one window. What is left over is dropped: epoch 0 drops it at the end, and
    every other epoch begins at a token drawn from the seed, so that windows begin
    elsewhere and no token is dropped for ever.

    Attributes:
        ids: The corpus.
        batch: The number of streams; see `fit_batch`.
        window: The steps whose predictions count in a batch.
        context: The steps before the window that are read again, for a truncation that
            reaches across windows; their targets are `IGNORE`.
        seed: At least 0.
    """

    ids: NDArray[np.int32]
    batch: int
    window: int
    context: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least("batch", self.batch, 1)
        check_at_least("window", self.window, 1)
        check_at_least("context", self.context, 0)
        check_at_least("seed", self.seed, 0)
        fits = fit_batch(len(self.ids) - 1, self.batch, self.window)
        if fits < self.batch:
            raise InputError(
                f"batch is {self.batch}, but the text of {len(self.ids)} tokens has "
                f"windows of {self.window} steps for {fits} streams; give a smaller "
                "--batch or --window, or more text"
            )

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in every epoch."""
        # enough is left over to shift by a whole window, unless there is only one
        spare = self.window - 1
        return max(1, (len(self.ids) - 1 - spare) // (self.batch * self.window))

    @property
    def tokens_per_epoch(self) -> int:
        """The number of predictions that count in every epoch."""
        return self.steps_per_epoch * self.batch * self.window

    def batch_at(self, step: int, next_context: int | None = None) -> Batch:
        """The batch of a step, from 0 on, through as many epochs as it takes.

        `starts` holds for the first window of an epoch alone. After the last one the
        next epoch begins afresh, so there `next_start` means nothing.

        Args:
            step: of the run.
            next_context: that of the next batch, where it will be another one. It can
                be larger by one window at most: the next segment begins in this one.
        """
        check_at_least("step", step, 0)
        following = self.context if next_context is None else next_context
        check_at_least("next_context", following, 0)
        if following > self.context + self.window:
            raise ValueError(
                f"next_context is {following}; it must be at most context + window = "
                f"{self.context + self.window}, for the next segment begins in this one"
            )
        epoch, i = divmod(step, self.steps_per_epoch)
        stream = self.steps_per_epoch * self.window  # predictions in each
        begin = self._shift(epoch) + stream * np.arange(self.batch, dtype=np.int64)
        rows = Rows(begin, begin + i * self.window, begin + stream)
        start = self._start(i, self.context)
        return rows.read(
            self.ids,
            range(start, (i + 1) * self.window),
            starts=i == 0,
            next_start=self._start(i + 1, following) - start,
        )

    def _start(self, i: int, context: int) -> int:
        """The step of the stream at which the segment of window `i` begins."""
        return max(0, i * self.window - context)

    def _shift(self, epoch: int) -> int:
        """The token at which an epoch's first stream begins."""
        if epoch == 0:
            return 0
        left_over = len(self.ids) - 1 - self.tokens_per_epoch
        return int(np.random.default_rng([self.seed, epoch]).integers(left_over + 1))


@dataclass(frozen=True, eq=False)
class SentenceBatches:
    """Sentences in batches of similar lengths, in another order in every epoch.

    Every sentence is met once an epoch. The epoch's permutation is cut into pools of
    some fifty batches, each pool is sorted by length and cut into batches, and the
    batches are shuffled; with `batch=1` that is a plain permutation.

    Attributes:
        sentences: The corpus.
        batch: Sentences in a batch; the smallest batch of an epoch may have fewer.
        seed: At least 0.
        max_length: The most predictions in a row. A longer sentence loses no word: it
            is cut into consecutive rows, of which each begins with a zero state.
    """

    sentences: Sentences
    batch: int
    seed: int = 0
    max_length: int = 256

    def __post_init__(self) -> None:
        check_at_least("batch", self.batch, 1)
        check_at_least("seed", self.seed, 0)
        check_at_least("max_length", self.max_length, 1)
        if len(self.sentences) == 0:
            raise InputError("there is no sentence to learn from; give more text")

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in every epoch."""
        return -(-len(self._rows) // self.batch)

    @property
    def tokens_per_epoch(self) -> int:
        """The number of predictions that count in every epoch."""
        return self.sentences.tokens

    def batch_at(self, step: int) -> Batch:
        """The batch of a step, from 0 on; the state always starts from zero."""
        check_at_least("step", step, 0)
        epoch, i = divmod(step, self.steps_per_epoch)
        rows = self._rows[self._order(epoch)[i]]
        time = int(rows.lengths.max())
        return rows.read(self.sentences.ids, range(time), starts=True, next_start=time)

    @cached_property
    def _rows(self) -> Rows:
        return sentence_rows(self.sentences, self.max_length)

    @cached_property
    def _order(self) -> Callable[[int], list[NDArray[np.int64]]]:
        """The rows of each batch of an epoch; the newest epochs are remembered."""
        lengths, batch, seed = self._rows.lengths, self.batch, self.seed

        @lru_cache(maxsize=2)
        def order(epoch: int) -> list[NDArray[np.int64]]:
            return _batches_of_epoch(lengths, batch, [seed, epoch])

        return order


def sentence_rows(sentences: Sentences, max_length: int | None = None) -> Rows:
    """A row for each sentence, or several where one is longer than `max_length`."""
    begin, stop = sentences.offsets[:-1], sentences.offsets[1:] - 1
    if max_length is not None:
        rows_each = -(-(stop - begin) // max_length)
        sentence = np.repeat(np.arange(len(sentences)), rows_each)
        nth = np.arange(len(sentence)) - (np.cumsum(rows_each) - rows_each)[sentence]
        begin = begin[sentence] + nth * max_length
        stop = np.minimum(begin + max_length, stop[sentence])
    return Rows(begin, begin, stop)


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse a setting that is not an integer or is too small."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be an integer")
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")


def _batches_of_epoch(
    lengths: NDArray[np.int64], batch: int, seed: list[int]
) -> list[NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    permutation = random.permutation(len(lengths))
    batches: list[NDArray[np.int64]] = []
    for begin in range(0, len(permutation), _POOL * batch):
        pool = permutation[begin : begin + _POOL * batch]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += (pool[i : i + batch] for i in range(0, len(pool), batch))
    return [batches[i] for i in random.permutation(len(batches))]
