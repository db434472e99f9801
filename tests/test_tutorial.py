"""The tutorial's network against its equations, written a second and a third time.

`jacobian_gradients` multiplies explicit Jacobians, one (t, k) pair after another.
`literal_gradients` knows no derivative at all: it differentiates the definition of the
window by complex steps, which are exact to rounding. Neither calls the module's code.
"""

import doctest
import importlib.machinery
import importlib.util
import inspect
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt import tutorial
from bptt.errors import GradientError
from bptt.tutorial import (
    RNN,
    SENTENCE_END,
    SENTENCE_START,
    UNKNOWN_TOKEN,
    Measurement,
    Vocabulary,
    build_vocabulary,
    train_with_sgd,
    training_pairs,
)

SPECIAL = (UNKNOWN_TOKEN, SENTENCE_START, SENTENCE_END)
X4, Y4 = [0, 1, 2, 3], [1, 2, 3, 4]
NAMES = ("dLdU", "dLdV", "dLdW")


def states(model, x):
    """States 0 ... T-1 by a plain loop, and the zero state at -1."""
    s = {-1: np.zeros(model.hidden_dim)}
    for t, word in enumerate(x):
        one_hot = np.eye(model.word_dim)[word]
        s[t] = np.tanh(model.U @ one_hot + model.W @ s[t - 1])
    return s


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def slope_of_tanh(s):
    return 1 - s**2


def jacobian_gradients(model, x, y, n, slope=slope_of_tanh):
    """Sum of `dE_t/ds_t (ds_t/ds_k) (ds_k/dP)` over the pairs with 0 <= t - k <= n."""
    s, words = states(model, x), np.eye(model.word_dim)
    dU, dV, dW = (np.zeros_like(P) for P in (model.U, model.V, model.W))
    for t in range(len(x)):
        error = softmax(model.V @ s[t]) - words[y[t]]
        dV += np.einsum("i,j->ij", error, s[t])
        for k in range(t + 1):
            if t - k > n:
                continue
            dst_dsk = np.eye(model.hidden_dim)
            for j in range(k + 1, t + 1):
                dst_dsk = np.diag(slope(s[j])) @ model.W @ dst_dsk
            dEt_dsk = error @ model.V @ dst_dsk
            dsk_dz = np.diag(slope(s[k]))
            dW += np.einsum("i,ij,k->jk", dEt_dsk, dsk_dz, s[k - 1])
            dU += np.einsum("i,ij,k->jk", dEt_dsk, dsk_dz, words[x[k]])
    return [dU, dV, dW]


def literal_gradients(model, x, y, n):
    """E_t from a run over steps t-n ... t that takes the state before them as given."""
    given_states, words = states(model, x), np.eye(model.word_dim)

    def loss(U, V, W):
        total = 0.0
        for t in range(len(x)):
            first = max(0, t - n)
            s = given_states[first - 1]
            for k in range(first, t + 1):
                s = np.tanh(U @ words[x[k]] + W @ s)
            z = V @ s
            total += np.log(np.exp(z).sum()) - z[y[t]]
        return total

    parameters = [P.astype(complex) for P in (model.U, model.V, model.W)]
    gradients = [np.zeros(P.shape) for P in parameters]
    for P, dP in zip(parameters, gradients, strict=True):
        for entry in np.ndindex(P.shape):
            value, P[entry] = P[entry], P[entry] + 1e-30j
            dP[entry] = loss(*parameters).imag / 1e-30
            P[entry] = value
    return gradients


def assert_gradients_equal(got, want, **tolerance):
    for name, a, b in zip(NAMES, got, want, strict=True):
        np.testing.assert_allclose(
            a, b, err_msg=name, **({"rtol": 1e-10, "atol": 1e-12} | tolerance)
        )


def parameter_bytes(model):
    return [P.tobytes() for P in (model.U, model.V, model.W)]


@st.composite
def networks(draw, max_steps=7):
    """A network whose recurrence neither dies nor explodes, and a sentence for it."""
    word_dim, steps = draw(st.integers(1, 6)), draw(st.integers(1, max_steps))
    model = RNN(word_dim, draw(st.integers(1, 5)), seed=draw(st.integers(0, 1000)))
    scale = draw(st.sampled_from([0.5, 1.0, 2.0]))
    for P in (model.U, model.V, model.W):
        P *= scale
    ids = st.lists(st.integers(0, word_dim - 1), min_size=steps, max_size=steps)
    return model, draw(ids), draw(ids)


@pytest.fixture
def plain():
    """The module without the argument checks that the tests' import hook adds."""
    path = inspect.getsourcefile(tutorial)
    loader = importlib.machinery.SourceFileLoader("plain_tutorial", path)
    spec = importlib.util.spec_from_loader("plain_tutorial", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


# The network


@settings(deadline=None, max_examples=30)
@given(networks())
def test_forward_is_equations_1_to_3(case):
    model, x, y = case
    o, s = model.forward_propagation(x)
    want = states(model, x)
    assert (o.dtype, s.dtype) == (np.float64, np.float64)
    assert o.shape == (len(x), model.word_dim)
    assert s.shape == (len(x) + 1, model.hidden_dim)
    assert not s[-1].any()
    for t in range(len(x)):
        np.testing.assert_allclose(s[t], want[t], rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(o[t], softmax(model.V @ want[t]), rtol=1e-12)
    assert model.predict(x).tolist() == [int(np.argmax(row)) for row in o]
    losses = [-math.log(o[t][y[t]]) for t in range(len(x))]
    assert model.calculate_total_loss([x], [y]) == pytest.approx(sum(losses))


def test_softmax_and_loss_survive_large_logits():
    model = RNN(3, 2)
    model.U[:], model.W[:] = 10, 0  # the state is (1, 1)
    model.V[:] = [[5000, 5000], [0, 0], [-5000, -5000]]
    o, _ = model.forward_propagation([0])
    assert o.tolist() == [[1, 0, 0]]
    assert model.calculate_total_loss([[0]], [[2]]) == pytest.approx(20000)


def test_loss_is_the_mean_over_words_not_over_sentences():
    model = RNN(7, 3)
    X, Y = [[1, 2, 3], [4]], [[2, 3, 5], [6]]
    parts = [model.calculate_total_loss([x], [y]) for x, y in zip(X, Y, strict=True)]
    assert model.calculate_total_loss(X, Y) == pytest.approx(sum(parts))
    assert model.calculate_loss(X, Y) == pytest.approx(sum(parts) / 4)
    objects = np.empty(2, dtype=object)
    objects[:] = [np.array(x) for x in X]
    assert model.calculate_loss(objects, Y) == model.calculate_loss(X, Y)


def test_untrained_model_knows_nothing_of_8000_words():
    rng = np.random.default_rng(0)
    X = [rng.integers(0, 8000, length) for length in (5, 12, 20, 8)]
    Y = [rng.integers(0, 8000, len(x)) for x in X]
    loss = RNN(8000).calculate_loss(X, Y)
    assert loss == pytest.approx(math.log(8000), abs=0.002)
    assert loss == pytest.approx(8.987, abs=0.002)


def test_parameters_are_uniform_within_one_over_root_fan_in():
    model = RNN(400, 25, seed=3)
    for P, shape, fan_in in (
        (model.U, (25, 400), 400),
        (model.V, (400, 25), 25),
        (model.W, (25, 25), 25),
    ):
        bound = fan_in**-0.5
        assert (P.shape, P.dtype) == (shape, np.float64)
        assert 0.98 * bound < abs(P).max() <= bound
        assert abs(P.mean()) < 0.1 * bound
    assert parameter_bytes(model) == parameter_bytes(RNN(400, 25, seed=3))
    assert parameter_bytes(model) != parameter_bytes(RNN(400, 25, seed=4))
    assert model.bptt_truncate == 4


# Its gradient


@settings(deadline=None, max_examples=60)
@given(networks(), st.integers(0, 8))
def test_window_equals_products_of_jacobians(case, n):
    model, x, y = case
    model.bptt_truncate = n
    assert_gradients_equal(model.bptt(x, y), jacobian_gradients(model, x, y, n))


@settings(deadline=None, max_examples=25)
@given(networks(max_steps=5), st.integers(0, 5))
def test_window_equals_its_definition_without_any_derivative(case, n):
    model, x, y = case
    model.bptt_truncate = n
    assert_gradients_equal(model.bptt(x, y), literal_gradients(model, x, y, n))


@settings(deadline=None, max_examples=25)
@given(networks())
def test_full_bptt_is_the_derivative_of_the_loss(case):
    model, x, y = case
    model.bptt_truncate = None
    full = model.bptt(x, y)
    assert_gradients_equal(full, literal_gradients(model, x, y, n=len(x)))
    model.bptt_truncate = 1000
    assert_gradients_equal(model.bptt(x, y), full, rtol=0, atol=0)


def test_n_recurrences_reach_n_plus_1_steps():
    """Each step has a word of its own, so the columns of dLdU tell steps apart."""
    model = RNN(6, 4, bptt_truncate=None)
    x, y = [0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]
    full_dU, _, _ = model.bptt(x, y)
    for n in range(7):
        model.bptt_truncate = n
        dU, _, _ = model.bptt(x, y)
        whole = [bool(np.array_equal(dU[:, k], full_dU[:, k])) for k in x]
        # the last output, t = 5, meets the n + 1 steps 5, 4, ..., 5 - n: only they
        # have heard from all outputs that come after them
        assert whole == [k >= 5 - n for k in x]


def test_gradient_of_a_state_of_size_1_by_hand():
    model = RNN(2, 1, bptt_truncate=0)
    u0, u1, v0, v1, w = 0.5, -0.3, 0.7, -0.2, 0.9
    model.U[:], model.V[:], model.W[:] = [[u0, u1]], [[v0], [v1]], w
    s0 = math.tanh(u0)
    s1 = math.tanh(u1 + w * s0)
    p0, p1 = (1 / (1 + math.exp((v1 - v0) * s)) for s in (s0, s1))  # of word 0
    e0, e1 = (p0 - 0, 1 - p0 - 1), (p1 - 1, 1 - p1)  # the words to come are 1 and 0
    d0 = (v0 * e0[0] + v1 * e0[1]) * (1 - s0**2)
    d1 = (v0 * e1[0] + v1 * e1[1]) * (1 - s1**2)
    dV = [[e0[0] * s0 + e1[0] * s1], [e0[1] * s0 + e1[1] * s1]]
    assert_gradients_equal(model.bptt([0, 1], [1, 0]), [[[d0, d1]], dV, [[d1 * s0]]])
    model.bptt_truncate = 1
    d1_at_0 = w * d1 * (1 - s0**2)
    want = [[[d0 + d1_at_0, d1]], dV, [[d1 * s0]]]
    assert_gradients_equal(model.bptt([0, 1], [1, 0]), want)


def test_bptt_leaves_the_probabilities_of_others_alone(monkeypatch):
    model = RNN(6, 3)
    o, s = model.forward_propagation(X4)
    before = o.tobytes()
    monkeypatch.setattr(model, "forward_propagation", lambda x: (o, s))
    model.bptt(X4, Y4)
    assert o.tobytes() == before


# The gradient check


@pytest.mark.parametrize("bptt_truncate", [3, 4, 1000, None])
def test_gradient_check_passes_on_the_tutorials_case(bptt_truncate):
    model = RNN(100, 10, bptt_truncate=bptt_truncate)
    before = parameter_bytes(model)
    assert model.gradient_check(X4, Y4) is True
    assert parameter_bytes(model) == before


@pytest.mark.parametrize("h", [1e-3, 1e-4, 1e-5, 1e-6])
def test_gradient_check_passes_whatever_the_step(h):
    model = RNN(8, 5, bptt_truncate=None, seed=1)
    assert model.gradient_check([0, 1, 2, 3, 2], [7, 6, 5, 4, 3], h=h)


def test_gradient_check_forgives_what_rounding_hides():
    model = RNN(6, 5, seed=2)
    model.U *= 1e2  # states of almost +-1, so that gradients are far below rounding
    model.U += np.sign(model.U) * 15
    dU, _, dW = model.bptt(X4, Y4)
    assert 0 < abs(dU).max() < 1e-12
    assert 0 < abs(dW).max() < 1e-12
    assert model.gradient_check(X4, Y4, h=1e-8)


def test_gradient_check_forgives_the_error_of_the_difference_itself():
    model = RNN(3, 2)
    model.U[:], model.V[:], model.W[:] = 1, 0, 0
    x, y = [0, 1, 2], [0, 1, 2]  # slopes of V cancel, third derivatives do not
    assert max(abs(dP).max() for dP in model.bptt(x, y)) < 1e-15
    assert model.gradient_check(x, y, h=1e-3)


WRONG = {
    "window one step short": lambda m, x, y: jacobian_gradients(m, x, y, 2),
    "no recurrence": lambda m, x, y: jacobian_gradients(m, x, y, 0),
    "tanh taken as linear": lambda m, x, y: jacobian_gradients(
        m, x, y, 3, slope=np.ones_like
    ),
    "slope 1 - |s|": lambda m, x, y: jacobian_gradients(
        m, x, y, 3, slope=lambda s: 1 - abs(s)
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_gradient_check_finds_a_wrong_formula(mistake, monkeypatch):
    model = RNN(20, 6)
    model.W *= 2
    right = jacobian_gradients(model, X4, Y4, 3)
    monkeypatch.setattr(model, "bptt", lambda x, y: right)
    assert model.gradient_check(X4, Y4)
    monkeypatch.setattr(model, "bptt", lambda x, y: WRONG[mistake](model, x, y))
    before = parameter_bytes(model)
    with pytest.raises(GradientError):
        model.gradient_check(X4, Y4)
    assert parameter_bytes(model) == before


@pytest.mark.parametrize(
    ("which", "entry"), [(0, (2, 1)), (1, (4, 5)), (1, (11, 0)), (2, (5, 5))]
)
@pytest.mark.parametrize("change", [lambda a: 1.05 * a, lambda a: -a, lambda a: np.nan])
def test_gradient_check_names_the_only_wrong_entry(which, entry, change, monkeypatch):
    model = RNN(12, 6)
    gradients = model.bptt(X4, Y4)
    true = gradients[which][entry]
    gradients[which][entry] = change(true)
    monkeypatch.setattr(model, "bptt", lambda x, y: gradients)
    with pytest.raises(GradientError) as error:
        model.gradient_check(X4, Y4)
    message = str(error.value)
    assert message.startswith(f"d{'UVW'[which]}[{entry[0]}, {entry[1]}]: ")
    assert repr(float(change(true))) in message
    assert "relative error" in message
    loss = model.calculate_total_loss([X4], [Y4])
    assert f"loss {loss:.3f}" in message


def test_gradient_check_sees_an_error_where_the_gradient_is_zero(monkeypatch):
    model = RNN(12, 6)
    gradients = model.bptt(X4, Y4)
    gradients[0][0, 11] = 1e-6  # the word 11 does not occur
    monkeypatch.setattr(model, "bptt", lambda x, y: gradients)
    with pytest.raises(GradientError, match=r"dU\[0, 11\]"):
        model.gradient_check(X4, Y4)


def test_threshold_is_on_the_relative_error(monkeypatch):
    model = RNN(12, 6)
    gradients = [1.1 * P for P in model.bptt(X4, Y4)]  # |a - n| / (|a| + |n|) = 1 / 21
    monkeypatch.setattr(model, "bptt", lambda x, y: gradients)
    assert model.gradient_check(X4, Y4, error_threshold=0.05)
    with pytest.raises(GradientError):
        model.gradient_check(X4, Y4, error_threshold=0.045)


def test_gradient_check_refuses_a_truncated_sentence():
    model = RNN(10, 3, bptt_truncate=2)
    assert model.gradient_check([1, 2, 3], [2, 3, 4])
    with pytest.raises(ValueError, match="at least 3, or check a sentence of at most"):
        model.gradient_check(X4, Y4)


# Training


def test_sgd_step_goes_down_the_gradient():
    model = RNN(9, 4, bptt_truncate=1)
    before = [P.copy() for P in (model.U, model.V, model.W)]
    gradients = model.bptt(X4, Y4)
    model.sgd_step(X4, Y4, 0.25)
    after = (model.U, model.V, model.W)
    for name, P, dP, new in zip("UVW", before, gradients, after, strict=True):
        np.testing.assert_array_equal(new, P - 0.25 * dP, err_msg=name)


def test_training_lowers_the_loss():
    sentences = ["the cat sat .", "the dog sat .", "a dog ran ."] * 2
    vocabulary = build_vocabulary(sentences)
    X, Y = training_pairs(sentences, vocabulary)
    model = RNN(vocabulary.size, 12)
    seen = []
    history = train_with_sgd(
        model, X, Y, 0.1, epochs=20, evaluate_loss_after=4, on_loss=seen.append
    )
    assert seen == history
    assert [m.epoch for m in history] == [0, 4, 8, 12, 16, 20]
    assert [m.examples_seen for m in history] == [0, 24, 48, 72, 96, 120]
    assert history[0].loss == pytest.approx(math.log(vocabulary.size), abs=0.1)
    assert history[-1].loss < 0.5 * history[0].loss
    assert history[-1].loss == model.calculate_loss(X, Y)


def test_rate_halves_exactly_when_the_loss_rose(monkeypatch):
    model = RNN(5, 2)
    losses = iter([3.0, 2.0, 2.5, 2.5, 2.6, 1.0, 9.0])
    rates = []
    monkeypatch.setattr(model, "calculate_loss", lambda X, Y: next(losses))
    monkeypatch.setattr(model, "sgd_step", lambda x, y, rate: rates.append((x, rate)))
    X, Y = [[1], [2]], [[2], [3]]
    history = train_with_sgd(model, X, Y, 8.0, epochs=13, evaluate_loss_after=2)
    assert [m.learning_rate for m in history] == [8, 8, 4, 4, 2, 2, 1]
    assert history[2] == Measurement(8, 4, 2.5, 4.0)
    used = [8.0] * 4 + [4.0] * 4 + [2.0] * 4 + [1.0]  # epoch by epoch
    assert rates == [(x, rate) for rate in used for x in X]


def test_a_rate_too_large_is_halved_on_a_real_network():
    model = RNN(6, 5)
    X, Y = [[0, 1, 2], [0, 3, 4], [0, 1, 5]], [[1, 2, 5], [3, 4, 5], [1, 4, 2]]
    history = train_with_sgd(model, X, Y, 20.0, epochs=12, evaluate_loss_after=1)
    pairs = list(itertools.pairwise(history))
    rose = [after.loss > before.loss for before, after in pairs]
    halved = [
        after.learning_rate == before.learning_rate / 2 for before, after in pairs
    ]
    assert any(rose)
    assert rose == halved


# Sampling

WORDS = Vocabulary(("a", UNKNOWN_TOKEN, "b", SENTENCE_START, "c", SENTENCE_END, "d"))


def constant_model(logits):
    """A network that gives these logits (up to rounding) after every word."""
    model = RNN(len(logits), 2)
    model.U[:], model.W[:] = 20, 0  # the state is (1, 1)
    model.V[:] = np.array(logits)[:, None] / 2
    return model


def test_generation_never_emits_unknown_or_start():
    model = constant_model([0, 5000, 0, 4000, 0, 0, 0])
    o, _ = model.forward_propagation([WORDS.start_id])
    assert o[0, WORDS.unknown_id] == 1  # all of it, the other words have 0.0
    rng = np.random.default_rng(1)
    for _ in range(200):
        sentence = model.generate_sentence(WORDS, seed=rng)
        assert sentence
        assert set(sentence) <= {"a", "b", "c", "d"}


def test_samples_follow_the_probabilities_that_remain():
    logits = [0.0, 1.5, 1.0, 2.0, -1.0, 0.5, -30.0]
    model, rng = constant_model(logits), np.random.default_rng(0)
    draws = [
        model.generate_sentence(WORDS, seed=rng, max_length=1, min_length=0)
        for _ in range(4000)
    ]
    weights = np.exp([logits[0], logits[2], logits[4], logits[5]])
    shares = [draws.count(s) / 4000 for s in (["a"], ["b"], ["c"], [])]
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.035)


def test_generation_follows_the_network_word_by_word():
    model = RNN(7, 6, seed=5)
    model.U *= 4
    model.W *= 3
    model.V *= 1e5  # so sharp that a sample is the most probable word
    sentence = model.generate_sentence(WORDS, max_length=12, min_length=12)
    ids, allowed = [WORDS.start_id], [WORDS.words.index(w) for w in "abcd"]
    while len(ids) <= 12:
        _, s = model.forward_propagation(ids)
        ids.append(max(allowed, key=lambda word: model.V[word] @ s[-2]))
    assert sentence == [WORDS.words[i] for i in ids[1:]]
    assert len(set(sentence)) > 1


def test_sentence_ends_at_its_end_token_but_not_too_early():
    ending = constant_model([0, 0, 0, 0, 0, 200, 0])
    assert ending.generate_sentence(WORDS, min_length=0) == []
    assert len(ending.generate_sentence(WORDS)) == 1
    assert len(ending.generate_sentence(WORDS, min_length=5)) == 5
    endless = constant_model([0, 0, 0, 0, 0, -200, 0])
    assert len(endless.generate_sentence(WORDS, max_length=17)) == 17


def test_generation_is_reproducible():
    model = RNN(7, 5)
    sample = [model.generate_sentence(WORDS, seed=i, min_length=9) for i in range(5)]
    again = [model.generate_sentence(WORDS, seed=i, min_length=9) for i in range(5)]
    assert sample == again
    assert len({tuple(sentence) for sentence in sample}) == 5
    assert model.generate_sentence(WORDS, min_length=9) == sample[0]


# Text


def test_vocabulary_takes_the_most_frequent_words():
    sentences = [["b", "b", "b", "d", "a"], ["d", "c", "a"], "C e"]
    assert build_vocabulary(sentences, size=6).words == (*SPECIAL, "b", "a", "c")
    whole = build_vocabulary(reversed(sentences))
    assert whole.words == (*SPECIAL, "b", "a", "c", "d", "e")
    assert whole.size == 8
    assert build_vocabulary([[f"w{i}" for i in range(9000)]]).size == 8000
    assert build_vocabulary([["x", UNKNOWN_TOKEN]]).words == (*SPECIAL, "x")


def test_strings_are_lower_cased_and_split_and_lists_are_not():
    text = "It's 3 o'clock: \"Zeit\", sagt Ärger-Max..."
    words = ["it's", "3", "o'clock", ":", '"', "zeit", '"', ",", "sagt", "ärger"]
    words += ["-", "max", ".", ".", "."]
    vocabulary = build_vocabulary([text])
    assert set(vocabulary.words) == {*SPECIAL, *words}
    assert [vocabulary.words[i] for i in vocabulary.encode(text)] == words
    assert vocabulary.encode(["Zeit"]) == [vocabulary.unknown_id]


def test_unknown_words_and_special_tokens_have_ids():
    vocabulary = Vocabulary((*SPECIAL, "cat", "sat"))
    assert vocabulary.encode(["sat", "dog", "cat"]) == [4, 0, 3]
    assert vocabulary.encode(SPECIAL) == [0, 1, 2]
    assert WORDS.encode(["d", "dog"]) == [6, 1]
    ids = (vocabulary.unknown_id, vocabulary.start_id, vocabulary.end_id)
    assert ids == (0, 1, 2)
    assert (WORDS.unknown_id, WORDS.start_id, WORDS.end_id) == (1, 3, 5)


def test_training_pairs_are_one_word_apart():
    vocabulary = Vocabulary((*SPECIAL, "cat", "sat"))
    X, Y = training_pairs(["Cat sat", ["the", "cat"]], vocabulary)
    assert X == [[1, 3, 4], [1, 0, 3]]
    assert Y == [[3, 4, 2], [0, 3, 2]]


# Wrong arguments


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([], ValueError, r"x=\[\] has shape \(0,\)"),
        (3, ValueError, r"x=3 has shape \(\)"),
        ([[1, 2]], ValueError, "one sentence"),
        ([[1], [1, 2]], ValueError, "not one sentence"),
        ([1, 10], ValueError, r"word id 10; ids lie in \[0, 10\)"),
        ([-1, 1], ValueError, "word id -1"),
        ([1.0, 2.0], TypeError, "float64; need integer"),
        (np.array([True, False]), TypeError, "bool"),
        (["a", "b"], TypeError, "need integer"),
    ],
)
def test_word_ids_are_checked(x, error, message, plain):
    model = plain.RNN(10, 3)
    y = [1, 1]
    for call in (model.forward_propagation, model.predict):
        with pytest.raises(error, match=message):
            call(x)
    for call in (model.bptt, model.gradient_check):
        with pytest.raises(error, match=message):
            call(x, y)
    with pytest.raises(error, match=message):
        model.sgd_step(x, y, 0.1)
    with pytest.raises(error, match=message.replace("x=", "y=")):
        model.bptt(y, x)
    for call in (model.calculate_loss, model.calculate_total_loss):
        with pytest.raises(error, match=message):
            call([y, x], [y, y])


def test_every_integer_type_will_do_for_ids():
    model = RNN(10, 3)
    want = model.bptt(X4, Y4)
    for dtype in (np.uint8, np.int32, np.uint64):
        got = model.bptt(np.array(X4, dtype), np.array(Y4, dtype))
        assert_gradients_equal(got, want, rtol=0, atol=0)
    assert_gradients_equal(model.bptt(tuple(X4), range(1, 5)), want, rtol=0, atol=0)


def test_x_and_y_belong_together():
    model = RNN(10, 3)
    for call in (model.bptt, model.gradient_check):
        with pytest.raises(ValueError, match="x has 4 words and y has 3"):
            call(X4, [1, 2, 3])
    with pytest.raises(ValueError, match="x has 1 words and y has 2"):
        model.calculate_loss([[1, 2], [1]], [[1, 2], [1, 2]])
    with pytest.raises(ValueError, match="X has 2 sentences and Y has 1"):
        model.calculate_loss([[1], [1]], [[1]])
    with pytest.raises(ValueError, match="at least one"):
        train_with_sgd(model, [], [])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"word_dim": 0}, ValueError, "word_dim=0 is too small; pass an integer >= 1"),
        ({"hidden_dim": -1}, ValueError, "hidden_dim=-1"),
        ({"bptt_truncate": -1}, ValueError, "bptt_truncate=-1.*>= 0"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"word_dim": 2.0}, TypeError, "word_dim=2.0 is not an integer"),
        ({"hidden_dim": True}, TypeError, "hidden_dim=True"),
        ({"bptt_truncate": 1.5}, TypeError, "bptt_truncate=1.5"),
        ({"seed": None}, TypeError, "seed=None"),
    ],
)
def test_dimensions_are_checked(arguments, error, message, plain):
    with pytest.raises(error, match=message):
        plain.RNN(**({"word_dim": 5} | arguments))


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, "1", True])
def test_rates_and_steps_are_checked(value, plain):
    model, error = plain.RNN(10, 3), (ValueError, TypeError)
    with pytest.raises(error, match="learning_rate="):
        model.sgd_step(X4, Y4, value)
    with pytest.raises(error, match="learning_rate="):
        plain.train_with_sgd(model, [X4], [Y4], value)
    with pytest.raises(error, match="h="):
        model.gradient_check(X4, Y4, h=value)
    with pytest.raises(error, match="error_threshold="):
        model.gradient_check(X4, Y4, error_threshold=value)
    with pytest.raises(ValueError, match=r"error_threshold=1\.0"):
        model.gradient_check(X4, Y4, error_threshold=1.0)  # no error is over 1


@pytest.mark.parametrize("name", ["epochs", "evaluate_loss_after"])
def test_numbers_of_epochs_are_checked(name, plain):
    for value, error in ((0, ValueError), (1.0, TypeError)):
        with pytest.raises(error, match=f"{name}={value}"):
            plain.train_with_sgd(plain.RNN(10, 3), [X4], [Y4], **{name: value})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_length": 0}, ValueError, "max_length=0"),
        ({"min_length": -1}, ValueError, "min_length=-1"),
        ({"min_length": 8, "max_length": 7}, ValueError, "min_length=8 is over"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"seed": "a"}, TypeError, "seed='a'"),
    ],
)
def test_generation_is_checked(arguments, error, message, plain):
    with pytest.raises(error, match=message):
        plain.RNN(7, 3).generate_sentence(WORDS, **arguments)
    with pytest.raises(ValueError, match="size=7 is not word_dim=8"):
        plain.RNN(8, 3).generate_sentence(WORDS)


def test_texts_are_checked(plain):
    with pytest.raises(ValueError, match="size=3 is too small"):
        build_vocabulary(["a"], size=3)
    with pytest.raises(ValueError, match="no word"):
        build_vocabulary(["", [], [UNKNOWN_TOKEN]])
    with pytest.raises(ValueError, match=r"sentences\[1\] has no words"):
        training_pairs(["a", "  "], WORDS)
    for token in (SENTENCE_START, SENTENCE_END):
        with pytest.raises(ValueError, match=rf"sentences\[0\].*already holds {token}"):
            training_pairs([["a", token]], WORDS)
        with pytest.raises(ValueError, match="already holds"):
            build_vocabulary([["a", token]])
    with pytest.raises(TypeError, match="'a cat' is one str"):
        plain.build_vocabulary("a cat")
    with pytest.raises(TypeError, match="word 3 in"):
        plain.training_pairs([["a", 3]], WORDS)


@pytest.mark.parametrize(
    "words", [SPECIAL, (*SPECIAL, "a", "a"), (UNKNOWN_TOKEN, SENTENCE_START, "a", "b")]
)
def test_a_vocabulary_has_its_tokens_and_each_word_once(words):
    with pytest.raises(ValueError, match="need the tokens"):
        Vocabulary(words)


def test_examples_in_the_documentation():
    result = doctest.testmod(tutorial)
    assert result.attempted > 0
    assert result.failed == 0
