"""How far back the gradient goes: flow, bias, window, verdict.

The question that the vanishing gradient raises (Hochreiter, 1991; Bengio, Simard &
Frasconi, 1994), answered for a user's own model and loss.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bptt.flow.estimates import FlowEstimates as FlowEstimates
from bptt.flow.find import problem_of
from bptt.flow.measure import Progress
from bptt.flow.result import GradientFlow as GradientFlow


def gradient_flow(
    model: torch.nn.Module,
    loss: Callable[[], Tensor],
    module: str | None = None,
    *,
    progress: Progress | None = None,
) -> GradientFlow:
    """How far back the gradient of a loss goes in a model's recurrent module.

    Runs `loss` once, with hooks on the recurrent module, and analyses that module alone
    on copies of its weights and input. The model, its gradients, buffers, mode and all
    random numbers are left as they were. Dropout masks are those of the run.

    Args:
        model: any model that holds a `torch.nn.RNN`, `GRU` or `LSTM`, or bptt's, or a
            `bptt.Recurrent`; or such a module itself.
        loss: a function of no arguments that runs the model and returns the scalar
            loss. It must call the recurrent module once.
        module: the name of the recurrent module, as in `model.named_modules()`, where
            the model has several.
        progress: is called with the lags done and their number, whenever one is done.

    Returns:
        The answer, computed when it is asked for.

    Raises:
        ValueError: the model has no recurrent module, or several and `module` is None;
            the loss has no graph, does not depend on the module, or does not call it
            exactly once.
        TypeError: `model` is no module, or the loss no scalar tensor.
        NotImplementedError: the module cannot be analysed exactly, with the reason: it
            is bidirectional, has a `proj_size`, a `forward` of its own, or a cell that
            draws random numbers.
        FloatingPointError: the loss or an error that reaches the module is not finite.

    >>> import bptt
    >>> rnn = bptt.GRU(3, 8)
    >>> x = torch.randn(20, 4, 3)
    >>> flow = gradient_flow(rnn, lambda: rnn(x)[0].square().sum())
    >>> flow.norms.shape, flow.window(0.05) <= 20
    (torch.Size([20, 20]), True)
    """
    problem, name = problem_of(model, loss, module)
    return GradientFlow(problem, name, progress)
