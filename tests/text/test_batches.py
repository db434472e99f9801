from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt.errors import InputError
from bptt.text import IGNORE, SentenceBatches, Sentences, StreamBatches, fit_batch


def stream(n):
    """Ids that are their own positions."""
    return np.arange(n, dtype=np.int32)


def numbered_sentences(lengths):
    """Sentences without a repeated id, so that a row tells where it comes from."""
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    return Sentences(stream(offsets[-1]), offsets)


def epoch_of(batches, epoch):
    n = batches.steps_per_epoch
    return [batches.batch_at(epoch * n + i) for i in range(n)]


def counted(batch):
    """The (input, target) pairs that count."""
    mask = batch.targets != IGNORE
    return list(zip(batch.inputs[mask], batch.targets[mask], strict=True))


def same(a, b):
    return (
        np.array_equal(a.inputs, b.inputs)
        and np.array_equal(a.targets, b.targets)
        and (a.starts, a.next_start) == (b.starts, b.next_start)
    )


# streams


def test_a_small_corpus_in_full():
    # 2 streams of 2 windows of 3 steps: 12 predictions, and 2 left over for the shift
    batches = StreamBatches(stream(15), batch=2, window=3, context=2)
    first, second = epoch_of(batches, 0)
    assert first.inputs.T.tolist() == [[0, 1, 2], [6, 7, 8]]
    assert first.targets.T.tolist() == [[1, 2, 3], [7, 8, 9]]
    assert (first.starts, first.next_start, first.tokens) == (True, 1, 6)
    assert second.inputs.T.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]]
    assert second.targets.T.tolist() == [
        [IGNORE, IGNORE, 4, 5, 6],
        [IGNORE, IGNORE, 10, 11, 12],
    ]
    assert (second.starts, second.next_start, second.tokens) == (False, 3, 6)
    assert first.inputs.dtype == first.targets.dtype == np.int64


stream_settings = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 5),
        "window": st.integers(1, 7),
        "context": st.integers(0, 20),
        "seed": st.integers(0, 3),
    }
)


def test_the_next_context_may_be_another_one():
    batches = StreamBatches(stream(41), batch=1, window=3, context=2)
    third = batches.batch_at(2)  # window 6 to 8, so the segment is 4 to 8
    assert third.inputs.T.tolist() == [[4, 5, 6, 7, 8]]
    begins = {c: 4 + batches.batch_at(2, c).next_start for c in range(6)}
    assert begins == {c: 9 - c for c in range(6)}  # that of the window less the context
    assert same(batches.batch_at(2, 2), third)
    for context in range(6):
        following = StreamBatches(stream(41), batch=1, window=3, context=context)
        assert following.batch_at(3).inputs[0, 0] == begins[context]
    with pytest.raises(ValueError, match=r"next_context is 6; .* = 5, for"):
        batches.batch_at(2, 6)
    with pytest.raises(ValueError, match="next_context is -1"):
        batches.batch_at(2, -1)
    assert batches.batch_at(0, 5).next_start == 0  # there are no steps before the first


@settings(deadline=None)
@given(spare=st.integers(0, 60), setting=stream_settings, epoch=st.integers(0, 4))
def test_every_prediction_of_an_epoch_counts_once(spare, setting, epoch):
    n = setting["batch"] * setting["window"] + 1 + spare
    batches = StreamBatches(stream(n), **setting)
    pairs = sorted(
        pair for batch in epoch_of(batches, epoch) for pair in counted(batch)
    )
    begin = pairs[0][0]
    assert pairs == [(i, i + 1) for i in range(begin, begin + len(pairs))]
    assert len(pairs) == batches.tokens_per_epoch
    assert epoch or begin == 0
    dropped = n - 1 - len(pairs)
    assert 0 <= begin <= dropped
    # less than one more window for each stream, or than the shift needs besides
    assert dropped < setting["batch"] * setting["window"] + setting["window"] - 1 or (
        dropped == 0 and setting["window"] == 1
    )


@settings(deadline=None)
@given(spare=st.integers(0, 90), setting=stream_settings, epoch=st.integers(0, 2))
def test_the_state_handed_on_belongs_to_where_the_next_segment_begins(
    spare, setting, epoch
):
    n = setting["batch"] * setting["window"] + 1 + spare
    window, context = setting["window"], setting["context"]
    epoch_batches = epoch_of(StreamBatches(stream(n), **setting), epoch)
    assert [b.starts for b in epoch_batches] == [True] + [False] * (
        len(epoch_batches) - 1
    )
    for i, (batch, following) in enumerate(pairwise(epoch_batches)):
        # position in the corpus at which each row of the next segment begins
        assert np.array_equal(following.inputs[0], batch.inputs[0] + batch.next_start)
        assert 0 <= batch.next_start <= len(batch.inputs)
        # as much context as was asked for, or all there is
        assert len(following.inputs) - window == min(context, (i + 1) * window)
    for batch in epoch_batches:
        rebuilt = len(batch.inputs) - window
        assert np.all(batch.targets[:rebuilt] == IGNORE)
        assert np.array_equal(batch.targets[rebuilt:], batch.inputs[rebuilt:] + 1)
        assert np.all(np.diff(batch.inputs, axis=0) == 1)


def test_streams_are_equal_and_contiguous():
    batches = StreamBatches(stream(1000), batch=4, window=10)
    rows = np.concatenate([b.inputs for b in epoch_of(batches, 0)])
    assert rows.shape == (240, 4)
    assert rows.T.ravel().tolist() == list(range(960))


def test_a_batch_depends_on_seed_and_step_alone():
    ids = stream(5_000)
    batches = StreamBatches(ids, batch=3, window=16, context=5, seed=7)
    steps = [0, 250, 3, 103, 250]
    again = StreamBatches(ids, batch=3, window=16, context=5, seed=7)
    backwards = {step: again.batch_at(step) for step in reversed(steps)}
    assert all(same(batches.batch_at(step), backwards[step]) for step in steps)
    other = StreamBatches(ids, batch=3, window=16, context=5, seed=8)
    per_epoch = batches.steps_per_epoch
    assert same(batches.batch_at(0), other.batch_at(0))  # no shift in epoch 0
    assert not same(batches.batch_at(per_epoch), other.batch_at(per_epoch))


def test_windows_begin_elsewhere_in_every_epoch():
    batches = StreamBatches(stream(321), batch=2, window=16, seed=1)
    n = batches.steps_per_epoch
    begins = [int(batches.batch_at(epoch * n).inputs[0, 0]) for epoch in range(300)]
    assert begins[0] == 0
    assert {begin % 16 for begin in begins} == set(range(16))
    # and so every prediction counts in some epoch, the last one too
    assert max(begins) + batches.tokens_per_epoch == 320


def test_the_smallest_corpus_has_one_window():
    batches = StreamBatches(stream(13), batch=3, window=4)
    assert batches.steps_per_epoch == 1
    for epoch in range(3):
        (batch,) = epoch_of(batches, epoch)
        assert batch.inputs.T.ravel().tolist() == list(range(12))
        assert batch.targets.T.ravel().tolist() == list(range(1, 13))


def test_fit_batch():
    assert fit_batch(tokens=12, batch=3, window=4) == 3
    assert fit_batch(tokens=11, batch=3, window=4) == 2
    assert fit_batch(tokens=4, batch=32, window=4) == 1
    with pytest.raises(
        InputError,
        match=r"allows 3 predictions, .* of 4 steps; give a smaller --window",
    ):
        fit_batch(tokens=3, batch=1, window=4)
    with pytest.raises(InputError, match=r"batch is 3.* 12 tokens .* for 2 streams"):
        StreamBatches(stream(12), batch=3, window=4)
    with pytest.raises(InputError, match="allows 0 predictions"):
        StreamBatches(stream(0), batch=1, window=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch", 0), ("window", 0), ("context", -1), ("seed", -1)],
)
def test_stream_settings_out_of_range(name, value):
    setting = {"batch": 1, "window": 1, name: value}
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least"):
        StreamBatches(stream(100), **setting)


def test_steps_out_of_range():
    sentences = SentenceBatches(numbered_sentences([3]), batch=1)
    for batches in (StreamBatches(stream(9), batch=1, window=1), sentences):
        with pytest.raises(ValueError, match="step is -1"):
            batches.batch_at(-1)
        with pytest.raises(TypeError):
            batches.batch_at(1.0)


# sentences

lengths_of_sentences = st.lists(st.integers(2, 12), min_size=1, max_size=40)


@settings(deadline=None)
@given(
    lengths=lengths_of_sentences,
    batch=st.integers(1, 6),
    seed=st.integers(0, 2),
    epoch=st.integers(0, 2),
    max_length=st.integers(1, 12),
)
def test_every_prediction_of_every_sentence_counts_once(
    lengths, batch, seed, epoch, max_length
):
    sentences = numbered_sentences(lengths)
    batches = SentenceBatches(sentences, batch, seed, max_length)
    rows = sum(-(-(n - 1) // max_length) for n in lengths)
    assert batches.steps_per_epoch == -(-rows // batch)
    pairs = [pair for b in epoch_of(batches, epoch) for pair in counted(b)]
    assert sorted(pairs) == [(i, i + 1) for s in sentences for i in s[:-1].tolist()]
    assert len(pairs) == batches.tokens_per_epoch == sentences.tokens


@settings(deadline=None)
@given(lengths=lengths_of_sentences, batch=st.integers(1, 6))
def test_rows_are_sentences_padded_with_their_end(lengths, batch):
    sentences = numbered_sentences(lengths)
    known = {int(s[0]): s.tolist() for s in sentences}
    batches = SentenceBatches(sentences, batch)
    met = []
    for b in epoch_of(batches, 1):
        assert b.starts
        assert b.next_start == len(b.inputs)
        longest = 0
        for inputs, targets in zip(b.inputs.T, b.targets.T, strict=True):
            s = known[int(inputs[0])]
            n = len(s) - 1
            assert inputs.tolist() == s[:-1] + [s[-1]] * (len(inputs) - n)
            assert targets.tolist() == s[1:] + [IGNORE] * (len(inputs) - n)
            longest = max(longest, n)
            met.append(s[0])
        assert len(b.inputs) == longest
    assert sorted(met) == sorted(known)


def test_a_long_sentence_is_cut_into_consecutive_rows():
    batches = SentenceBatches(numbered_sentences([3, 9]), batch=1, max_length=3)
    rows = sorted(
        (b.inputs[:, 0].tolist(), b.targets[:, 0].tolist())
        for b in epoch_of(batches, 0)
    )
    assert rows == [
        ([0, 1], [1, 2]),
        ([3, 4, 5], [4, 5, 6]),
        ([6, 7, 8], [7, 8, 9]),
        ([9, 10], [10, 11]),
    ]


def test_a_batch_of_sentences_depends_on_seed_and_step_alone():
    sentences = numbered_sentences(
        np.random.default_rng(0).integers(2, 40, 500).tolist()
    )
    batches = SentenceBatches(sentences, batch=8, seed=3)
    steps = [0, 700, 62, 63, 1, 700]
    again = SentenceBatches(sentences, batch=8, seed=3)
    backwards = {step: again.batch_at(step) for step in reversed(steps)}
    assert all(same(batches.batch_at(step), backwards[step]) for step in steps)
    other = SentenceBatches(sentences, batch=8, seed=4)
    assert not all(same(batches.batch_at(i), other.batch_at(i)) for i in range(10))
    assert batches.steps_per_epoch == 63
    assert not all(
        same(batches.batch_at(i), batches.batch_at(63 + i)) for i in range(9)
    )


def test_batches_hold_similar_lengths_in_no_order():
    lengths = np.random.default_rng(0).integers(2, 102, 4_000).tolist()
    batches = SentenceBatches(numbered_sentences(lengths), batch=16)
    epoch = epoch_of(batches, 0)
    steps = sum(b.inputs.size for b in epoch)
    assert sum(b.tokens for b in epoch) / steps > 0.95  # 0.53 in random batches
    times = np.array([len(b.inputs) for b in epoch])
    assert abs(np.corrcoef(times[1:], times[:-1])[0, 1]) < 0.3


def test_a_sentence_has_other_company_in_every_epoch():
    batches = SentenceBatches(numbered_sentences([4] * 64), batch=8)
    company = [
        {frozenset(b.inputs[0].tolist()) for b in epoch_of(batches, e)}
        for e in range(2)
    ]
    assert company[0].isdisjoint(company[1])


def test_single_sentences_come_in_random_order():
    batches = SentenceBatches(numbered_sentences([2] * 200), batch=1)
    orders = [[int(b.inputs[0, 0]) for b in epoch_of(batches, e)] for e in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(0, 400, 2))
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize(
    ("name", "value"), [("batch", 0), ("seed", -1), ("max_length", 0)]
)
def test_sentence_settings_out_of_range(name, value):
    setting = {"batch": 1, name: value}
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least"):
        SentenceBatches(numbered_sentences([3]), **setting)


def test_no_sentences():
    none = Sentences(np.zeros(0, np.int32), np.zeros(1, np.int64))
    with pytest.raises(InputError, match="no sentence"):
        SentenceBatches(none, batch=1)
