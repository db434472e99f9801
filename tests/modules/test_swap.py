"""Models as users write them, trained by the same script before and after the swap."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

import bptt
from literal import assert_same

DTYPES = {torch.float64: 1e-10, torch.float32: 2e-4}
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
WORDS = 11
OURS = (bptt.RNN, bptt.GRU, bptt.LSTM)


@pytest.fixture(autouse=True)
def seeded_and_quick():
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ids(*shape, seed=3):
    return torch.randint(WORDS, shape, generator=torch.Generator().manual_seed(seed))


class Seq2Seq(nn.Module):
    """The encoder's state starts the decoder."""

    def __init__(self, kind=nn.GRU, **options):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 5)
        self.encoder = kind(5, 6, 2, batch_first=True, **options)
        self.decoder = kind(5, 6, 2, batch_first=True, **options)
        self.out = nn.Linear(6, WORDS)

    def forward(self):
        _, state = self.encoder(self.embed(ids(3, 7)))
        y, _ = self.decoder(self.embed(ids(3, 5, seed=4)), state)
        logits = self.out(y.contiguous().view(-1, 6))
        return F.cross_entropy(logits, ids(15, seed=5))


class Tagger(nn.Module):
    """Two directions over sentences of several lengths."""

    def __init__(self, *, sort, kind=nn.LSTM):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 5)
        self.rnn = kind(5, 4, 2, bidirectional=True, batch_first=True, dropout=0.3)
        self.out = nn.Linear(8, 3)
        self.sort = sort

    def forward(self):
        lengths = [6, 4, 1] if self.sort else [4, 1, 6]
        rows = [ids(length, seed=length) for length in lengths]
        x = self.embed(pad_sequence(rows, batch_first=True))
        packed = pack_padded_sequence(
            x, torch.tensor(lengths), batch_first=True, enforce_sorted=self.sort
        )
        y, state = self.rnn(packed)
        y, _ = pad_packed_sequence(y, batch_first=True)
        loss = F.cross_entropy(self.out(y).flatten(0, 1), ids(18) % 3)
        return loss + sum(part.square().mean() for part in state)


class WordModel(nn.Module):
    """A language model with dropout whose output weights are the embedding."""

    def __init__(self, kind=nn.LSTM, layers=3, dropout=0.4, **options):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 6)
        self.drop = nn.Dropout(dropout)
        self.rnn = kind(6, 6, layers, dropout=dropout, **options)
        self.out = nn.Linear(6, WORDS)
        self.out.weight = self.embed.weight

    def forward(self):
        y, _ = self.rnn(self.drop(self.embed(ids(8, 3))))
        if self.rnn.bidirectional:
            y = y[..., :6] + y[..., 6:]
        return F.cross_entropy(self.out(self.drop(y)).flatten(0, 1), ids(24, seed=4))


def train(model, steps=4, optimizer=None):
    """The user's script: losses, and the gradients and weights that it ends with."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    torch.manual_seed(7)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    found = {"losses": torch.stack(losses)}
    for name, weight in model.named_parameters():
        found[name] = weight.clone()
        if weight.grad is not None:
            found[f"d{name}"] = weight.grad.clone()
    return found


def twins(model, dtype, replaced, *, seed=0):
    """A model with well-spread weights, and its accelerated twin."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-0.7, 0.7, generator=generator)
    model = model.to(dtype)
    twin = copy.deepcopy(model)
    result = bptt.accelerate(twin)
    assert result.replaced == replaced
    assert result.left == {}
    for name in replaced:
        assert isinstance(twin.get_submodule(name), OURS)
    return model, twin


def assert_trained_alike(model, twin, dtype, **options):
    expected = train(model, **options)
    assert_same(train(twin, **options), expected, DTYPES[dtype])
    assert len(set(expected["losses"].tolist())) > 1  # it does learn


@DTYPE
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_an_encoder_and_a_decoder(kind, dtype):
    pair = twins(Seq2Seq(kind), dtype, ("encoder", "decoder"))
    assert_trained_alike(*pair, dtype)


@DTYPE
@pytest.mark.parametrize("sort", [True, False])
def test_a_tagger_of_packed_sequences(sort, dtype):
    assert_trained_alike(*twins(Tagger(sort=sort), dtype, ("rnn",)), dtype)


@DTYPE
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_tied_language_model_with_the_same_dropout(
    kind, layers, bidirectional, dtype
):
    model = WordModel(kind, layers, bidirectional=bidirectional)
    model, twin = twins(model, dtype, ("rnn",))
    assert_trained_alike(model, twin, dtype)
    assert twin.out.weight is twin.embed.weight
    torch.manual_seed(8)
    other = twin()  # other masks
    torch.manual_seed(7)
    assert abs(float((twin() - other).detach())) > 1e-4
    # ... and none out of training mode
    with torch.no_grad():
        assert_same(
            {"loss": twin.eval()()}, {"loss": model.eval()()}, 10 * DTYPES[dtype]
        )
    assert not twin.rnn.training
    assert twin.train().rnn.training


@DTYPE
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_nonlinearity_is_kept(nonlinearity, dtype):
    model = Seq2Seq(nn.RNN, nonlinearity=nonlinearity)
    assert_trained_alike(*twins(model, dtype, ("encoder", "decoder")), dtype)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")  # torch's
@DTYPE
@pytest.mark.parametrize("bidirectional", [False, True])
def test_projections(bidirectional, dtype):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(
                WORDS, 5, 2, proj_size=3, bidirectional=bidirectional, dropout=0.3
            )

        def forward(self):
            x = F.one_hot(ids(6, 2), WORDS).to(self.rnn.weight_hh_l0.dtype)
            return self.rnn(x)[0].square().mean()

    assert_trained_alike(*twins(Model(), dtype, ("rnn",)), dtype)


class Symmetric(nn.Module):
    """Of its first square part; a user's own parametrization."""

    def forward(self, weight):
        square = weight[: weight.shape[1]]
        return torch.cat(((square + square.T) / 2, weight[weight.shape[1] :]))


PURE = {
    "own": lambda rnn: parametrize.register_parametrization(
        rnn, "weight_hh_l0", Symmetric()
    ),
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}
OLD = {
    "weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": torch.nn.utils.spectral_norm,
    "pruned": lambda rnn, name: prune.l1_unstructured(rnn, name, amount=0.4),
}


def changed(change, model, name="weight_hh_l0"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm is deprecated
        change(model.rnn, name) if change is not PURE["own"] else change(model.rnn)
    return model


@DTYPE
@pytest.mark.parametrize("name", PURE)
def test_parametrized_weights(name, dtype):
    model, twin = (
        changed(PURE[name], WordModel(nn.GRU, 2).to(dtype)) for _ in range(2)
    )
    twin.load_state_dict(model.state_dict())
    assert bptt.accelerate(twin).replaced == ("rnn",)
    assert isinstance(twin.rnn, bptt.GRU)
    assert_trained_alike(model, twin, dtype)
    # A second one, and without any again
    parametrizations.weight_norm(twin.rnn, "weight_ih_l0")
    assert bptt.accelerate(twin) == bptt.Accelerated((), {})
    train(twin, 1)
    for weight in ("weight_hh_l0", "weight_ih_l0"):
        parametrize.remove_parametrizations(twin.rnn, weight)
    assert type(twin.rnn) is bptt.GRU


@DTYPE
@pytest.mark.parametrize("name", OLD)
def test_weights_that_a_hook_makes_before_each_call(name, dtype):
    model = changed(OLD[name], WordModel(nn.LSTM, 2).to(dtype))
    twin = changed(OLD[name], WordModel(nn.LSTM, 2).to(dtype))
    twin.load_state_dict(model.state_dict())
    assert bptt.accelerate(twin).replaced == ("rnn",)
    assert_trained_alike(model, twin, dtype)


class Noise(nn.Module):
    def forward(self, weight):
        return F.dropout(weight, 0.2, self.training)


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, weight):
        self.calls += 1
        return weight


class Growing(nn.Module):
    calls = 0

    def forward(self, weight):
        self.calls += 1
        return weight * self.calls


class Uncopied(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, weight):
        return weight + torch.rand(weight.shape, generator=self.generator)

    def __deepcopy__(self, memo):
        raise TypeError("no copy of a generator")


UNSTEADY = ["spectral_norm", Noise, Counted, Growing, Uncopied]


@pytest.mark.parametrize("which", UNSTEADY)
def test_a_parametrization_that_changes_by_being_read_is_left(which):
    model = WordModel(nn.LSTM, 2)
    if which == "spectral_norm":
        parametrizations.spectral_norm(model.rnn, "weight_hh_l0")
    else:
        parametrize.register_parametrization(model.rnn, "weight_hh_l0", which())
    before = {name: t.clone() for name, t in model.state_dict().items()}
    drawn = torch.get_rng_state()
    result = bptt.accelerate(model.eval())
    assert result.replaced == ()
    assert list(result.left) == ["rnn"]
    assert "another weight at each evaluation" in result.left["rnn"]
    assert not isinstance(model.rnn, bptt.LSTM)
    assert_same(model.state_dict(), before, 0.0)
    assert torch.equal(torch.get_rng_state(), drawn)


@DTYPE
def test_frozen_weights_and_weights_that_two_modules_share(dtype):
    model = Seq2Seq(nn.LSTM)
    model.embed.weight.requires_grad_(False)
    for name, weight in model.encoder.named_parameters():
        weight.requires_grad_("l1" in name)
        setattr(model.decoder, name, weight)
    model, twin = twins(model, dtype, ("encoder", "decoder"))
    assert twin.encoder.weight_hh_l1 is twin.decoder.weight_hh_l1
    assert_trained_alike(model, twin, dtype)
    assert twin.encoder.weight_hh_l0.grad is None


@DTYPE
def test_one_module_under_two_names(dtype):
    model = Seq2Seq()
    model.decoder = model.encoder
    model, twin = twins(model, dtype, ("encoder",))
    assert twin.decoder is twin.encoder
    assert_trained_alike(model, twin, dtype)


@DTYPE
def test_the_optimiser_goes_on(dtype):
    model = Seq2Seq().to(dtype)
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, twin)]
    for m, optimizer in zip((model, twin), optimizers, strict=True):
        train(m, 2, optimizer)
    before = {name: (id(p), p.data_ptr()) for name, p in twin.named_parameters()}
    bptt.accelerate(twin)
    assert before == {n: (id(p), p.data_ptr()) for n, p in twin.named_parameters()}
    found, expected = (
        train(m, 2, optimizer)
        for m, optimizer in zip((model, twin), optimizers, strict=True)
    )
    assert_same(found, expected, 10 * DTYPES[dtype])


def test_hooks_stay():
    def hooked(module):
        seen = []
        module.register_forward_pre_hook(lambda m, args: (args[0] * 2, *args[1:]))
        module.register_forward_hook(lambda m, args, out: (out[0] + 1, out[1]))
        module.register_full_backward_hook(
            lambda m, dx, dy: seen.append((dx[0].clone(), dy[0].clone()))
        )
        return seen

    reference = nn.LSTM(3, 4, dtype=torch.float64)
    module = copy.deepcopy(reference)
    seen = [hooked(m) for m in (reference, module)]
    bptt.accelerate(module)
    found = []
    for m in (reference, module):
        x = torch.ones(5, 2, 3, dtype=torch.float64, requires_grad=True)
        y, _ = m(x)
        y.square().sum().backward()
        found.append({"y": y, "dx": x.grad, "dW": m.weight_hh_l0.grad})
    assert_same(found[1], found[0])
    assert_same(*(dict(zip(("dx", "dy"), calls[0], strict=True)) for calls in seen))
    assert [len(calls) for calls in seen] == [1, 1]


def test_state_dicts_copies_and_pickles():
    model, twin = twins(Seq2Seq(), torch.float64, ("encoder", "decoder"))
    other = Seq2Seq().double()
    for target, source in ((other, twin), (twin, other)):
        target.load_state_dict(source.state_dict(), strict=True)
    copies = [copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))]
    expected = train(model)
    for each in copies:
        assert type(each.encoder) is bptt.GRU
        assert each.encoder.weight_hh_l0 is not twin.encoder.weight_hh_l0
        assert_same(train(each), expected, 1e-10)
    assert_same(train(twin), expected, 1e-10)


def test_functional_call_reads_the_weights_that_it_is_given():
    model, twin = twins(Seq2Seq(), torch.float64, ("encoder", "decoder"))
    weights = {name: p.detach() * 0.5 for name, p in model.named_parameters()}
    found = [torch.func.functional_call(m, weights, ()) for m in (twin, model)]
    assert_same({"loss": found[0]}, {"loss": found[1]})
    assert abs(float((found[0] - model()).detach())) > 1e-3


@pytest.mark.skipif(torch.cuda.is_available(), reason="wants the model on CUDA there")
def test_data_parallel():
    model = nn.DataParallel(Seq2Seq())
    pair = twins(model, torch.float64, ("module.encoder", "module.decoder"))
    assert_trained_alike(*pair, torch.float64)


@pytest.mark.parametrize("layout", [{}, {"batch_first": True}])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_outputs_lie_in_memory_as_torch_nns(kind, layout):
    module = kind(3, 4, 2, bidirectional=True, **layout)
    x = torch.ones(5, 2, 3)
    expected = module(x)
    bptt.accelerate(module)
    found = module(x)
    assert found[0].stride() == expected[0].stride()
    state = [part if isinstance(part, tuple) else (part,) for _, part in (found,)]
    assert all(part.is_contiguous() for part in state[0])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torch_jit_before_and_after():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(3, 4, 2)

        def forward(self, x):
            return self.rnn(x)[0]

    model = Model()
    x, other = torch.ones(5, 2, 3), torch.rand(4, 3, 3)
    for compiled in (torch.jit.script(model), torch.jit.trace(model, x)):
        result = bptt.accelerate(compiled)
        assert result.replaced == ()
        assert "TorchScript has compiled it" in result.left["rnn"]
    expected = model(other)
    assert bptt.accelerate(model).replaced == ("rnn",)
    assert_same({"y": torch.jit.trace(model, x)(other)}, {"y": expected}, 1e-6)
    with pytest.raises(NotImplementedError, match=r"cannot compile bptt's GRU\. Use"):
        torch.jit.script(model)
    assert type(model.rnn) is bptt.GRU


# Dynamo compiles what checks annotations in tests, too.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("called", [False, True])
def test_a_compiled_model(backend, called, monkeypatch):
    model = nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 4)).double()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend=backend)
    x = torch.rand(5, 2, 3, dtype=torch.float64)
    if called:  # what it compiled for torch.nn's must not run any more
        compiled(x)
    assert bptt.accelerate(compiled).replaced == ("_orig_mod.1",)
    ran = []
    run = bptt.GRU._run
    monkeypatch.setattr(bptt.GRU, "_run", lambda *args: [ran.append(1), run(*args)][1])
    found = []
    for m in (compiled, model):
        y, h = m(x)
        (y.square().sum() + h.sum()).backward()
        found.append({"y": y, "h": h})
    assert_same(*found)
    assert_same(
        {name: p.grad for name, p in twin.named_parameters()},
        {name: p.grad for name, p in model.named_parameters()},
    )
    assert ran == [1]
