"""Which modules `accelerate` replaces, which it leaves, and why."""

import jaxtyping
import pytest
import torch
from torch import nn

import bptt
from literal import KINDS, assert_same, theirs

OURS = (bptt.RNN, bptt.GRU, bptt.LSTM)


def test_the_model_may_be_a_recurrent_module_itself():
    for kind in KINDS:
        module = theirs(kind, 3, 4)
        expected = module(torch.ones(2, 1, 3).double())[0]
        assert bptt.accelerate(module).replaced == ("",)
        assert isinstance(module, OURS)
        assert_same(
            {"y": module(torch.ones(2, 1, 3).double())[0]}, {"y": expected}, 1e-14
        )


def test_what_is_bptts_is_neither_replaced_nor_left():
    model = nn.Sequential(bptt.LSTM(3, 4), nn.GRU(4, 5))
    assert bptt.accelerate(model) == bptt.Accelerated(("1",), {})
    module = model[1]
    assert bptt.accelerate(model) == bptt.Accelerated((), {})
    assert model[1] is module
    assert type(module) is bptt.GRU


def test_the_result_is_frozen():
    result = bptt.accelerate(nn.Sequential(nn.GRU(3, 4), nn.GRUCell(3, 4)))
    with pytest.raises(AttributeError):
        result.replaced = ()
    with pytest.raises(TypeError):
        result.left["0"] = "no"


class OwnForward(nn.LSTM):
    def forward(self, x, hx=None):
        y, state = super().forward(x, hx)
        return y + 1, state


class OwnName(nn.GRU):
    pass


def test_subclasses_cells_and_replaced_forwards_are_left():
    model = nn.ModuleDict(
        {
            "own": OwnForward(3, 4),
            "named": OwnName(3, 4),
            "patched": nn.GRU(3, 4),
            "cell": nn.LSTMCell(3, 4),
            "fine": nn.RNN(3, 4),
        }
    )
    model.patched.forward = model.patched.forward
    before = {name: type(module) for name, module in model.items()}
    result = bptt.accelerate(model)
    assert result.replaced == ("fine",)
    assert list(result.left) == ["own", "named", "patched", "cell"]
    assert "OwnForward is not torch.nn's own and has its own" in result.left["own"]
    assert "OwnName is not torch.nn's own and may" in result.left["named"]
    assert "forward was replaced on the module" in result.left["patched"]
    assert "LSTMCell, which does one step a call" in result.left["cell"]
    for name in result.left:
        assert type(model[name]) is before[name]


def test_16_bits_and_tensors_of_another_kind_are_left():
    class Tagged(torch.Tensor):
        pass

    model = nn.Sequential(nn.LSTM(3, 4).bfloat16(), nn.GRU(3, 4).half(), nn.RNN(3, 4))
    weight = model[2].weight_hh_l0
    model[2].weight_hh_l0 = nn.Parameter(weight.detach().as_subclass(Tagged))
    result = bptt.accelerate(model)
    assert result.replaced == ()
    assert "weight_ih_l0 is torch.bfloat16" in result.left["0"]
    assert "weight_ih_l0 is torch.float16" in result.left["1"]
    assert "weight_hh_l0 is a Tagged" in result.left["2"]


def test_weights_on_another_device_are_left(monkeypatch):
    monkeypatch.setattr("bptt.modules.swap._DEVICES", {"cpu"})  # meta stands for cuda
    result = bptt.accelerate(nn.LSTM(3, 4, device="meta"))
    assert "weight_ih_l0 is on meta" in result.left[""]


def test_a_model_without_memory_is_swapped_before_it_gets_some():
    model = nn.Sequential(nn.LazyLinear(3), nn.GRU(3, 4, 2, device="meta"))
    assert bptt.accelerate(model).replaced == ("1",)
    x = torch.ones(5, 2, 3)
    assert model[1](x.to("meta"))[0].shape == (5, 2, 4)
    reference = nn.GRU(3, 4, 2)
    model[1].to_empty(device="cpu").load_state_dict(reference.state_dict())
    assert_same({"y": model[1](x)[0]}, {"y": reference(x)[0]}, 1e-6)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_quantized_modules_are_left():
    from torch.ao.quantization import quantize_dynamic

    model = quantize_dynamic(nn.Sequential(nn.LSTM(3, 4), nn.GRU(3, 4)), {nn.LSTM})
    result = bptt.accelerate(model)
    assert result.replaced == ("1",)
    assert "quantized.dynamic.modules.rnn.LSTM is not torch.nn's" in result.left["0"]


NO_MODULES = {"a list": [nn.LSTM(3, 4)], "the class LSTM": nn.LSTM, "a NoneType": None}


@pytest.mark.parametrize("given", NO_MODULES)
def test_what_is_not_a_module_is_refused(given, monkeypatch):
    # Only in tests are annotations checked first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=rf"model must be a .*Module; got {given}\b"):
        bptt.accelerate(NO_MODULES[given])
