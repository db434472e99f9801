"""Which network reads which words, and that a trained model's numbers are its own."""

import numpy as np
import pytest
import torch

from bptt.errors import InputError
from bptt.explain import (
    MAX_WORDS,
    read_by_model,
    read_by_small_network,
    worked_example,
)
from bptt.language_model import LanguageModel, ModelConfig
from bptt.text import Tokenizer
from training.problems import text


def model(level="word", vocab=None, **options):
    """An untrained network, one tanh layer if not told otherwise."""
    tokenizer = Tokenizer.train(text(), level, vocab)
    settings = {"cell": "rnn", "hidden": 6, "unit": "sentence"} | options
    torch.manual_seed(0)
    config = ModelConfig(vocab=tokenizer.size, **settings)
    return LanguageModel(config, tokenizer).double().eval()


# the small network


@pytest.mark.parametrize(
    ("sentence", "x", "y"),
    [
        ("the cat sat down", (0, 1, 2, 4), (1, 2, 4, 5)),
        ("The DOG", (0, 1), (1, 3)),
        (" down\tdown\ndown ", (0, 5, 5), (5, 5, 5)),
    ],
)
def test_before_each_word_it_has_read_those_before(sentence, x, y):
    reading = read_by_small_network(sentence)
    assert (reading.x, reading.y) == (x, y)


def test_the_same_network_every_time():
    a, b = (read_by_small_network().network for _ in range(2))
    for name in ("U", "W"):
        mine, other = (getattr(one.layers[0], name) for one in (a, b))
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_array_equal(a.V, b.V)


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("the bird sat", "sentence has 'bird', which the network does not know; it "),
        ("<start> the", "sentence has '<start>'"),
        ("a b c d a", "sentence has 'a', 'b', 'c' and 1 more, which"),
        ("the \x1b[31mcat", r"sentence has '\x1b[31mcat', which"),
        ("the " + "x" * 999, "which the network does not know"),
        ("", "from 2 to 20 words or tokens; got 0"),
        ("the", "from 2 to 20 words or tokens; got 1"),
        ("the " * (MAX_WORDS + 1), "got 21"),
    ],
)
def test_a_sentence_that_it_cannot_read(sentence, message):
    with pytest.raises(InputError) as caught:
        read_by_small_network(sentence)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 150


def test_the_longest_sentence():
    example = worked_example(read_by_small_network("the " * MAX_WORDS))
    assert example.t == MAX_WORDS - 1


# trained models


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"embedding": 3},
        {"embedding": 6, "tied": True},
        {"level": "char", "unit": "stream"},
        {"level": "bpe", "vocab": 270, "unit": "stream", "dropout": 0.5},
        {"unit": "stream"},
        {"layers": 2},
        {"cell": "gru"},
        {"cell": "gru", "layers": 3, "dropout": 0.5},
        {"cell": "gru", "bias": False, "embedding": 3},
        {"cell": "lstm", "level": "char", "unit": "stream"},
        {"cell": "lstm", "layers": 2, "embedding": 6, "tied": True},
        {"cell": "lstm", "bias": False},
    ],
    ids=str,
)
def test_a_models_numbers_are_its_own(options):
    network = model(**options)
    with torch.no_grad():  # biases start at 0 in no module, but make sure
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    reading = read_by_model(network, "the cat")
    ids = network.tokenizer.encode("the cat").tolist()
    unit = network.config.unit
    first = network.tokenizer.start_id if unit == "sentence" else network.first_id
    assert reading.x == (first, *ids[:-1])
    assert reading.y == tuple(ids)
    example = worked_example(reading)

    logits, _ = network(torch.tensor([reading.x]).t())
    E = torch.nn.functional.cross_entropy(logits[-1], torch.tensor(reading.y[-1:]))
    tight = {"rtol": 0, "atol": 1e-13}
    probabilities = logits[:, 0].softmax(-1).detach().numpy()
    mine = np.stack([step.o for step in example.steps])
    np.testing.assert_allclose(mine, probabilities, **tight)
    assert abs(example.steps[-1].E - E.item()) < 1e-13
    for at in range(network.config.layers):
        weights = network.recurrent.all_weights[at][:2]
        dU, dW = torch.autograd.grad(E, weights, retain_graph=True)
        example = worked_example(reading, at + 1)
        np.testing.assert_allclose(example.dU, dU.numpy(), **tight)
        np.testing.assert_allclose(example.dW, dW.numpy(), **tight)
    (dV,) = torch.autograd.grad(E, network.decoder.weight)
    alike = np.allclose(example.dV, dV.numpy(), atol=1e-13)
    assert alike != example.network.tied  # the embedding's part is in there too


def test_float32_weights_are_taken_as_they_are():
    single = model().float()
    example = worked_example(read_by_model(single, "the cat sat"))
    W = single.recurrent.weight_hh_l0.detach().double()
    np.testing.assert_array_equal(example.network.layers[0].W, W)
    assert example.differences.largest < 1e-14


def test_a_stream_begins_after_a_new_line():
    network = model("char", unit="stream")
    reading = read_by_model(network, "cat")
    assert reading.x[0] == network.tokenizer.encode("\n")[0]


def test_a_sentence_that_the_model_makes_up():
    for options in ({}, {"level": "char", "unit": "stream"}):
        network = model(**options)
        a, b = (read_by_model(network) for _ in range(2))
        assert a.y == b.y
        assert len(a.y) == 4
        assert min(a.y) > network.tokenizer.end_id


def test_common_words_where_the_model_makes_up_none():
    network = model(vocab=5)
    with torch.no_grad():
        network.decoder.bias[network.tokenizer.end_id] = 1e4
    assert read_by_model(network).y == (3, 4, 3, 4)


@pytest.mark.parametrize(
    ("level", "sentence", "message"),
    [
        ("word", "the bird sat", "sentence has 'bird', which the network does not"),
        ("word", "the \x1b[2Jcat", r"sentence has '\x1b[2Jcat', which"),
        ("char", "cat #\x9b", r"sentence has '#', '\x9b', which"),
        ("word", "cat", "from 2 to 20 words or tokens; got 1"),
        ("char", "the cat sat on the mat", "got 22"),
        ("bpe", "", "got 0"),
        ("word", "the \udcff", "half of a surrogate pair"),
    ],
)
def test_a_sentence_that_a_model_cannot_read(level, sentence, message):
    network = model(level, 270 if level == "bpe" else None)
    with pytest.raises(InputError) as caught:
        read_by_model(network, sentence)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_weights_that_are_not_finite_are_refused():
    network = model()
    with torch.no_grad():
        network.decoder.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="V has numbers that are not finite"):
        read_by_model(network, "the cat")
