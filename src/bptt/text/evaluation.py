"""Batches to evaluate on: every token is predicted once, from its own past.

The loss of a text must not depend on how it was cut. So state is carried from window to
window, the parallel streams that make it fast do not begin cold but read some of
what comes before them, and sentences are never cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bptt.errors import InputError
from bptt.text.batches import Batch, Rows, check_at_least, sentence_rows
from bptt.text.corpus import Sentences


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A plan to read rows of a corpus, `batch` at a time, window by window.

    Iterating gives each batch of rows in consecutive windows: `starts` holds for the
    first, and the others take the state that the one before them ended with. It may
    be iterated over any number of times.

    Attributes:
        ids: The corpus.
        rows: What each row reads.
        batch: The rows read together.
        window: The most steps in a batch.
    """

    ids: NDArray[np.int32]
    rows: Rows
    batch: int
    window: int

    def __iter__(self) -> Iterator[Batch]:
        for rows, time in self._groups():
            for start in range(0, time, self.window):
                steps = range(start, min(start + self.window, time))
                yield rows.read(
                    self.ids, steps, starts=start == 0, next_start=len(steps)
                )

    def __len__(self) -> int:
        return sum(-(-time // self.window) for _, time in self._groups())

    @property
    def tokens(self) -> int:
        """The number of predictions that count."""
        return int((self.rows.stop - self.rows.first).sum())

    def _groups(self) -> Iterator[tuple[Rows, int]]:
        """The rows read together, and the steps that the longest of them has."""
        for i in range(0, len(self.rows), self.batch):
            rows = self.rows[i : i + self.batch]
            yield rows, int(rows.lengths.max())


def evaluation_streams(
    ids: NDArray[np.int32],
    *,
    window: int,
    stream_tokens: int = 4096,
    max_streams: int = 32,
    burn_in: int = 256,
) -> Evaluation:
    """Every token but the first, predicted once, in parallel streams.

    Args:
        ids: The corpus, at least two tokens.
        window: The most steps in a batch.
        stream_tokens: The predictions that a stream should have: a long text is cut
            into as many streams as have so many, a short one is not cut.
        max_streams: The most streams.
        burn_in: The tokens that each stream but the first reads before its own, with
            targets `IGNORE`, so that its state is not cold.

    Raises:
        InputError: There are fewer than two tokens.
    """
    check_at_least("window", window, 1)
    check_at_least("stream_tokens", stream_tokens, 1)
    check_at_least("max_streams", max_streams, 1)
    check_at_least("burn_in", burn_in, 0)
    tokens = len(ids) - 1
    if tokens < 1:
        raise InputError(
            f"the text has {len(ids)} token(s); at least 2 are needed to predict one; "
            "give more text"
        )
    streams = min(max(tokens // stream_tokens, 1), max_streams)
    bounds = np.arange(streams + 1, dtype=np.int64) * tokens // streams
    first, stop = bounds[:-1], bounds[1:]
    rows = Rows(np.maximum(first - burn_in, 0), first, stop)
    return Evaluation(ids, rows, streams, window)


def evaluation_sentences(
    sentences: Sentences, batch: int = 32, *, window: int = 256
) -> Evaluation:
    """Every token but the start of each sentence, predicted once, the longest first.

    Args:
        sentences: The corpus.
        batch: Sentences read together.
        window: The most steps in a batch; a longer sentence goes on in the next one
            with its state.
    """
    check_at_least("batch", batch, 1)
    check_at_least("window", window, 1)
    rows = sentence_rows(sentences)
    longest_first = np.argsort(-rows.lengths, kind="stable")
    return Evaluation(sentences.ids, rows[longest_first], batch, window)
