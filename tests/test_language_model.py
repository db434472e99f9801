import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bptt
from bptt.language_model import LanguageModel, ModelConfig
from bptt.text import Tokenizer
from bptt.truncation import Truncation

TEXT = "abca bcd.\nabcd\n"
CELLS = ("rnn", "gru", "lstm")
INPUTS = {
    "one-hot": {},
    "embedding": {"embedding": 3},
    "tied": {"embedding": 5, "tied": True},
}


@cache
def tokenizer(text=TEXT):
    return Tokenizer.train(text, "char")


def make(cell="lstm", *, seed=0, spread=0.8, text=TEXT, **options):
    """A model with random weights, in evaluation mode."""
    options = {"hidden": 5, "layers": 2, **options}
    config = ModelConfig(vocab=tokenizer(text).size, cell=cell, **options)
    model = LanguageModel(config, tokenizer(text))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-spread, spread, generator=generator)
    return model.eval()


def some_ids(time=9, batch=3, vocab=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab or tokenizer().size, (time, batch), generator=generator)


# the network


def test_without_biases_it_is_the_tutorials_network():
    vocab, hidden, time = 11, 6, 13
    tutorial = bptt.tutorial.RNN(vocab, hidden, bptt_truncate=4, seed=3)
    tutorial.W *= 1.7  # so that what the truncation cuts off is not small
    config = ModelConfig(vocab=vocab, cell="rnn", hidden=hidden, bias=False)
    model = LanguageModel(config, truncation=Truncation.per_output(4)).double()
    model.load_state_dict(
        {
            "recurrent.weight_ih_l0": torch.from_numpy(tutorial.U),
            "recurrent.weight_hh_l0": torch.from_numpy(tutorial.W),
            "decoder.weight": torch.from_numpy(tutorial.V),
        }
    )
    ids = some_ids(time + 1, 1, vocab).squeeze(1)
    x, y = ids[:-1].numpy(), ids[1:].numpy()
    logits, state = model(ids[:-1].unsqueeze(1))
    o, s = tutorial.forward_propagation(x)
    probabilities = logits.squeeze(1).softmax(-1).detach().numpy()
    np.testing.assert_allclose(probabilities, o, rtol=0, atol=1e-14)
    np.testing.assert_allclose(state[0, 0].detach().numpy(), s[time - 1], atol=1e-14)

    loss = F.cross_entropy(logits.squeeze(1), ids[1:], reduction="sum")
    assert loss.item() == pytest.approx(tutorial.calculate_total_loss([x], [y]), 1e-13)
    loss.backward()
    gradients = {
        "U": model.recurrent.weight_ih_l0.grad,
        "V": model.decoder.weight.grad,
        "W": model.recurrent.weight_hh_l0.grad,
    }
    for (name, gradient), dP in zip(
        gradients.items(), tutorial.bptt(x, y), strict=True
    ):
        np.testing.assert_allclose(gradient.numpy(), dP, atol=1e-13, err_msg=f"d{name}")
    tutorial.bptt_truncate = None
    assert abs(tutorial.bptt(x, y)[2] - gradients["W"].numpy()).max() > 1e-3


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("given", INPUTS)
def test_logits_are_those_of_torch_nn(cell, given):
    model = make(cell, **INPUTS[given])
    ids = some_ids()
    if model.embedding is None:
        x = F.one_hot(ids, model.config.vocab).float()
    else:
        x = model.embedding.weight[ids]
    theirs = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](
        x.shape[-1], model.config.hidden, model.config.layers
    )
    theirs.load_state_dict(model.recurrent.state_dict())
    y, _ = theirs(x)
    expected = F.linear(y, model.decoder.weight, model.decoder.bias)
    logits, _ = model(ids)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_the_state_carries_on(cell):
    model, ids = make(cell).double(), some_ids()
    whole, final = model(ids)
    first, state = model(ids[:4])
    second, state = model(ids[4:], state)
    torch.testing.assert_close(torch.cat((first, second)), whole)
    torch.testing.assert_close(state, final)


def test_dropout_of_the_embedding_between_layers_and_of_the_outputs():
    model = make("gru", embedding=4, hidden=200, dropout=0.25).train()
    seen = []
    model.recurrent.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    ids = some_ids(20, 40)
    with torch.no_grad():
        model(ids)
    x, y = seen
    kept = model.embedding.weight[ids] / 0.75
    torch.testing.assert_close(x[x != 0], kept[x != 0])
    assert (x == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert model.recurrent.dropout == 0.25
    assert make("gru", layers=1, dropout=0.25).recurrent.dropout == 0  # no warning


@pytest.mark.parametrize("cell", CELLS)
def test_one_hot_input_begins_as_wide_as_a_pre_activation(cell):
    config = ModelConfig(vocab=50, cell=cell, hidden=40, layers=2)
    recurrent = LanguageModel(config).recurrent
    assert recurrent.weight_ih_l0.std().item() == pytest.approx(1, abs=0.1)
    for name, weight in recurrent.named_parameters():
        if name != "weight_ih_l0":
            assert weight.abs().max() <= 40**-0.5


def test_the_tutorials_network_begins_as_the_tutorials():
    config = ModelConfig(vocab=400, cell="rnn", hidden=30, bias=False)
    model = LanguageModel(config)
    U, W, V = (
        model.recurrent.weight_ih_l0,
        model.recurrent.weight_hh_l0,
        model.decoder.weight,
    )
    for weight, fan_in in ((U, 400), (W, 30), (V, 30)):
        assert weight.abs().max().item() == pytest.approx(fan_in**-0.5, rel=0.02)


def test_tied_weights_are_one_tensor():
    model = make(**INPUTS["tied"])
    assert model.decoder.weight is model.embedding.weight
    assert make(embedding=5).decoder.weight is not make(embedding=5).embedding.weight


def test_the_truncation_is_that_of_the_recurrence():
    model = make()
    assert model.truncation is None
    model.truncation = Truncation.chunks(3)
    assert model.recurrent.truncation == Truncation.chunks(3) == model.truncation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab": 0}, "vocab must be from 1"),
        ({"hidden": 0}, "hidden must be from 1"),
        ({"hidden": 2**24 + 1}, "hidden must be from 1 to 16777216"),
        ({"layers": 0}, "layers must be from 1"),
        ({"layers": 1025}, "layers must be from 1 to 1024; got 1025"),
        ({"embedding": -1}, "embedding must be from 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1; got 1.0"),
        ({"dropout": -0.1}, "dropout must be"),
        ({"dropout": math.nan}, "dropout must be"),
        ({"tied": True}, "embedding = hidden = 512; got embedding = 0"),
        ({"tied": True, "embedding": 3}, "embedding = hidden"),
    ],
)
def test_a_configuration_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"vocab": 5, **options})


def test_a_tokenizer_of_another_size_is_refused():
    with pytest.raises(
        ValueError, match=f"tokenizer's size, {tokenizer().size}; got 4"
    ):
        LanguageModel(ModelConfig(vocab=4, hidden=3), tokenizer())


# generating


def allowed_argmax(model, ids, forbidden):
    """The likeliest allowed token after `ids`, from the start state each time."""
    with torch.no_grad():
        logits, _ = model(torch.tensor(ids).unsqueeze(1))
    last = logits[-1, 0]
    last[forbidden] = -math.inf
    return int(last.argmax())


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 5e-324, 1e-30])
@pytest.mark.parametrize("prompt", ["", "bc"])
@pytest.mark.parametrize("unit", ["stream", "sentence"])
def test_no_temperature_is_the_chain_of_the_likeliest(temperature, prompt, unit):
    model = make(unit=unit, spread=2.0, seed=2)
    t = tokenizer()
    given = [int(i) for i in t.encode(prompt)]
    forbidden = [t.unknown_id, t.start_id]
    if unit == "sentence":
        ids = [t.start_id, *given]
    else:
        ids = given or [int(i) for i in t.encode("\n")]
        forbidden.append(t.end_id)
    new = []
    while len(new) < 12:
        new.append(allowed_argmax(model, ids + new, forbidden))
        if new[-1] == t.end_id:
            break
    text = model.generate(prompt, length=12, temperature=temperature)
    assert text == t.decode(given + new)
    assert text.startswith(prompt)


def test_without_a_new_line_a_stream_starts_after_the_rarest_token():
    model = make(text="aab", spread=2.0)
    t = tokenizer("aab")
    first = allowed_argmax(model, [t.size - 1], [0, 1, 2])
    assert model.generate(length=1, temperature=0) == t.decode([first])


def test_the_same_seed_gives_the_same_text():
    model = make()
    text = model.generate("ab", length=60, seed=7)
    assert text == model.generate("ab", length=60, seed=7)
    assert text != model.generate("ab", length=60, seed=8)
    assert len(text) == 62


def independent(bias, **options):
    """A model whose every token has these logits, whatever came before."""
    model = make(**options)
    with torch.no_grad():
        model.decoder.weight.zero_()
        model.decoder.bias.copy_(torch.as_tensor(bias))
    return model


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_tokens_come_as_often_as_the_temperature_says(temperature):
    n = 600
    logits = torch.linspace(2, -1, tokenizer().size)
    model = independent(logits, hidden=2, layers=1)
    new = list(model.sample([], n, temperature, seed=0))
    share = torch.bincount(torch.tensor(new), minlength=len(logits)) / n
    expected = (logits[3:] / temperature).softmax(-1)
    assert share[:3].tolist() == [0, 0, 0]
    assert (share[3:] - expected).abs().max() < 4 * math.sqrt(0.25 / n)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e300])
@pytest.mark.parametrize("unit", ["stream", "sentence"])
def test_special_tokens_are_never_emitted(temperature, unit):
    bias = torch.zeros(tokenizer().size)
    bias[:2] = 1e4  # unknown and start
    bias[2] = 1e4 if unit == "stream" else -1e4
    model = independent(bias, unit=unit)
    ids = list(model.sample([3, 4], 50, temperature, seed=1))
    assert len(ids) == 50 or temperature == 1e300
    assert not {0, 1, 2} & set(ids)


def test_a_sentence_ends_at_its_end_token():
    bias = torch.zeros(tokenizer().size)
    bias[2] = 1e4
    model = independent(bias, unit="sentence")
    assert model.generate("abc", length=50) == "abc"
    assert model.generate("", length=50, temperature=0) == ""
    bias[2] = math.log(len(bias))  # ends about every third time
    lengths = [
        len(independent(bias, unit="sentence").generate(length=50, seed=seed))
        for seed in range(20)
    ]
    assert len(set(lengths)) > 1
    assert max(lengths) < 50


def test_generating_leaves_the_mode_and_drops_nothing():
    model = make(dropout=0.5)
    text = model.generate("a", length=30, seed=3)
    model.train()
    assert model.generate("a", length=30, seed=3) == text
    assert model.training
    assert model.recurrent.training
    model.eval()
    model.generate("a", length=3)
    assert not model.training


def test_length_0_is_the_prompt():
    assert make().generate("abd", length=0) == "abd"
    assert make().generate("aXd", length=0) == "a\ufffdd"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": -1}, "length must be at least 0; got -1"),
        ({"temperature": -0.1}, "temperature must be at least 0; got -0.1"),
        ({"temperature": math.nan}, "temperature must be at least 0; got nan"),
        ({"temperature": math.inf}, "temperature must be at least 0; got inf"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**63}, "seed must be at least 0 and below"),
    ],
)
def test_generating_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make().generate("a", **arguments)


def test_generating_needs_a_tokenizer():
    model = LanguageModel(ModelConfig(vocab=5, hidden=3))
    with pytest.raises(ValueError, match="no tokenizer; give one to LanguageModel"):
        model.generate("a")
    with pytest.raises(ValueError, match="no tokenizer"):
        list(model.sample([3], 1, 1.0, 0))
