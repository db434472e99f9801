"""What cannot be analysed is refused by name, with the reason and the remedy."""

import pytest
import torch

import bptt
from bptt.flow import gradient_flow

X = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))


def refused(error, match, model, loss, module=None):
    with pytest.raises(error, match=match):
        gradient_flow(model, loss, module)


def test_models_without_one_recurrent_module():
    gru = torch.nn.GRU(3, 4)
    refused(ValueError, "no recurrent module", torch.nn.Linear(3, 4), lambda: X.sum())
    refused(
        ValueError,
        r"'0' \(LSTMCell\).*bptt\.Recurrent",
        torch.nn.Sequential(torch.nn.LSTMCell(3, 4)),
        lambda: X.sum(),
    )
    two = torch.nn.ModuleDict({"up": torch.nn.GRU(3, 4), "down": gru})
    loss = lambda: two["down"](X)[0].sum()  # noqa: E731
    refused(ValueError, r"2 recurrent modules.*'up', 'down'", two, loss)
    assert gradient_flow(two, loss, "down").module == "down"
    refused(ValueError, "no module 'left'.*'up', 'down'", two, loss, "left")
    refused(ValueError, "never called module 'up'", two, loss, "up")
    head = torch.nn.ModuleDict({"rnn": gru, "head": torch.nn.Linear(4, 1)})
    refused(ValueError, "'head' is a Linear", head, loss, "head")
    refused(TypeError, "model", [gru], loss)


def test_losses():
    gru = torch.nn.GRU(3, 4)
    refused(TypeError, r"shape \(6, 2, 4\)", gru, lambda: gru(X)[0])
    refused(TypeError, "returned float", gru, lambda: gru(X)[0].sum().item())
    refused(ValueError, "without a graph", gru, lambda: gru(X)[0].detach().sum())

    def no_grad():
        with torch.no_grad():
            return gru(X)[0].sum()

    refused(ValueError, "without a graph.*no_grad", gru, no_grad)
    free = torch.ones((), requires_grad=True)
    refused(
        ValueError,
        "does not depend on what the GRU returned",
        gru,
        lambda: gru(X)[0].detach().sum() * free,
    )
    refused(
        ValueError, "called the GRU 2 times", gru, lambda: (gru(X)[0] + gru(X)[0]).sum()
    )
    refused(
        FloatingPointError, "returned inf", gru, lambda: gru(X)[0].square().sum() / 0
    )
    refused(
        FloatingPointError,
        "reaches the outputs of the GRU is not finite",
        gru,
        lambda: (gru(X)[0] * 0).sqrt().sum(),
    )
    assert not gru._forward_hooks  # they are gone after an error, too
    assert not gru._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_modules():
    both = torch.nn.LSTM(3, 4, bidirectional=True)
    refused(NotImplementedError, "bidirectional", both, lambda: both(X)[0].sum())
    projected = bptt.LSTM(3, 4, proj_size=2)
    refused(
        NotImplementedError,
        "proj_size=2",
        projected,
        lambda: projected(X)[0].sum(),
    )

    class Doubled(torch.nn.GRU):
        def forward(self, x, hx=None):
            y, h = super().forward(x, hx)
            return 2 * y, h

    doubled = Doubled(3, 4)
    refused(
        NotImplementedError, "has its own forward", doubled, lambda: doubled(X)[0].sum()
    )


def test_arguments():
    gru = bptt.GRU(3, 4)
    flow = gradient_flow(gru, lambda: gru(X)[0].sum())
    for call, error, match in (
        (lambda: flow.gradient_by_lag("weight"), ValueError, "no parameter 'weight'"),
        (lambda: flow.window(-1), ValueError, "tolerance must be at least 0; got -1"),
        (lambda: flow.horizon(2.0), ValueError, "share must be between 0 and 1"),
        (lambda: flow.jacobian(0), ValueError, "step must be from 1 to 5"),
    ):
        with pytest.raises(error, match=match):
            call()
    zero = gradient_flow(gru, lambda: gru(X)[0].sum() * 0)
    with pytest.raises(ValueError, match="gradient of the module's parameters is zero"):
        zero.window()
