import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt.errors import InputError
from bptt.text import IGNORE, Sentences, evaluation_sentences, evaluation_streams


def stream(n):
    """Ids that are their own positions."""
    return np.arange(n, dtype=np.int32)


def numbered_sentences(lengths):
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    return Sentences(stream(offsets[-1]), offsets)


def counted(batches):
    return [
        pair
        for batch in batches
        for pair in zip(
            batch.inputs[batch.targets != IGNORE],
            batch.targets[batch.targets != IGNORE],
            strict=True,
        )
    ]


def joined(batches):
    """The windows put together again: inputs and targets of each row."""
    inputs = np.concatenate([batch.inputs for batch in batches])
    return inputs.T, np.concatenate([batch.targets for batch in batches]).T


def test_a_small_corpus_in_full():
    # 7 predictions in streams of 2, 2 and 3
    plan = evaluation_streams(
        stream(8), window=4, stream_tokens=2, max_streams=9, burn_in=3
    )
    first, second = plan
    x = IGNORE
    assert first.inputs.T.tolist() == [[0, 1, 2, 2], [0, 1, 2, 3], [1, 2, 3, 4]]
    assert first.targets.T.tolist() == [[1, 2, x, x], [x, x, 3, 4], [x, x, x, 5]]
    assert second.inputs.T.tolist() == [[2, 2], [4, 4], [5, 6]]
    assert second.targets.T.tolist() == [[x, x], [x, x], [6, 7]]
    assert [(b.starts, b.next_start) for b in plan] == [(True, 4), (False, 2)]
    assert (len(plan), plan.tokens) == (2, 7)


@settings(deadline=None)
@given(
    n=st.integers(2, 200),
    window=st.integers(1, 30),
    stream_tokens=st.integers(1, 60),
    max_streams=st.integers(1, 8),
    burn_in=st.integers(0, 40),
)
def test_every_token_but_the_first_is_predicted_once(
    n, window, stream_tokens, max_streams, burn_in
):
    plan = evaluation_streams(
        stream(n),
        window=window,
        stream_tokens=stream_tokens,
        max_streams=max_streams,
        burn_in=burn_in,
    )
    batches = list(plan)
    assert sorted(counted(batches)) == [(i, i + 1) for i in range(n - 1)]
    assert plan.tokens == sum(batch.tokens for batch in batches) == n - 1
    assert len(batches) == len(plan)
    assert [b.starts for b in batches] == [True] + [False] * (len(batches) - 1)
    assert all(b.next_start == len(b.inputs) <= window for b in batches)
    inputs, targets = joined(batches)
    assert len(inputs) == min(max((n - 1) // stream_tokens, 1), max_streams)
    for row, target in zip(inputs, targets, strict=True):
        own = np.flatnonzero(target != IGNORE)
        # what comes before a stream's own predictions is read in order before them
        assert own[0] == min(burn_in, row[own[0]])
        assert np.all(np.diff(own) == 1)
        assert np.all(np.diff(row[: own[-1] + 1]) == 1)
    own_tokens = (targets != IGNORE).sum(axis=1)
    assert own_tokens.max() - own_tokens.min() <= 1


def test_default_streams():
    assert evaluation_streams(stream(4_000), window=64).batch == 1
    assert evaluation_streams(stream(8_193), window=64).batch == 2
    assert evaluation_streams(stream(300_000), window=64).batch == 32
    inputs, targets = joined(evaluation_streams(stream(8_193), window=64))
    assert inputs[:, 0].tolist() == [0, 4_096 - 256]
    assert np.flatnonzero(targets[1] != IGNORE)[0] == 256


def test_a_plan_can_be_read_again():
    plan = evaluation_streams(stream(100), window=7)
    assert counted(plan) == counted(plan) != []


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(2, 20), min_size=1, max_size=30),
    batch=st.integers(1, 6),
    window=st.integers(1, 25),
)
def test_every_token_but_each_start_is_predicted_once(lengths, batch, window):
    sentences = numbered_sentences(lengths)
    plan = evaluation_sentences(sentences, batch, window=window)
    batches = list(plan)
    assert sorted(counted(batches)) == [(i, i + 1) for s in sentences for i in s[:-1]]
    assert plan.tokens == sentences.tokens == sum(b.tokens for b in batches)
    assert len(batches) == len(plan)
    groups = []
    for b in batches:
        if b.starts:
            groups.append([])
        groups[-1].append(b)
    assert len(groups) == -(-len(lengths) // batch)
    read = []
    for group in groups:
        assert all(b.next_start == len(b.inputs) <= window for b in group)
        for inputs, targets in zip(*joined(group), strict=True):
            n = int((targets != IGNORE).sum())
            assert np.all(targets[n:] == IGNORE)
            read.append([*inputs[:n].tolist(), int(targets[n - 1])])
    assert sorted(read) == [s.tolist() for s in sentences]
    assert [len(s) for s in read] == sorted(lengths, reverse=True)


def test_settings_out_of_range():
    good = {"window": 1, "stream_tokens": 1, "max_streams": 1, "burn_in": 0}
    for name in good:
        value = good[name] - 1
        with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least"):
            evaluation_streams(stream(9), **(good | {name: value}))
    with pytest.raises(ValueError, match="batch is 0"):
        evaluation_sentences(numbered_sentences([3]), 0)
    with pytest.raises(ValueError, match="window is 0"):
        evaluation_sentences(numbered_sentences([3]), window=0)
    with pytest.raises(InputError, match="has 1 token"):
        evaluation_streams(stream(1), window=1)
