"""What reads a module's code, and not its results: tracing and TorchScript."""

import jaxtyping
import pytest
import torch
import torch.nn.functional as F

import bptt
from literal import KINDS, assert_same, ours

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # torch.nn's own
]
KIND = pytest.mark.parametrize("kind", KINDS)


@KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grad", [True, False])
def test_a_trace_computes_what_the_module_does_for_other_inputs(kind, dtype, grad):
    torch.manual_seed(0)
    module = ours(kind, 3, 4, 2, dtype=dtype)
    x, other = (torch.randn(5, 2, 3, dtype=dtype) for _ in range(2))
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(module, x)
        assert_same({"y": traced(other)[0]}, {"y": module(other)[0]}, 1e-5)


def test_a_trace_takes_ids_as_one_hot():
    module = bptt.GRU(5, 4)
    ids, other = torch.zeros(6, 2, dtype=torch.int64), torch.randint(5, (6, 2))
    traced = torch.jit.trace(module, ids)
    expected = module(F.one_hot(other, 5).float())[0]
    assert_same({"y": traced(other)[0]}, {"y": expected}, 1e-5)


def test_a_truncated_module_is_not_traced():
    module = bptt.LSTM(3, 4, truncation=bptt.Truncation(2, 3))
    with pytest.raises(NotImplementedError, match=r"full BPTT.*Truncation\(k1=2, k2"):
        torch.jit.trace(module, torch.zeros(5, 2, 3))


@KIND
def test_torchscript_and_fx_say_what_to_do(kind, monkeypatch):
    module = ours(kind, 3, 4)
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.script cannot compile"):
        torch.jit.script(torch.nn.Sequential(module))
    # Only in tests are annotations checked first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"got Proxy\. If torch\.fx .* is_leaf_module"):
        torch.fx.symbolic_trace(torch.nn.Sequential(module))
