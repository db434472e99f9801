"""The exact gradient without going back through time: real-time recurrent learning.

Backpropagation through time remembers the steps and walks back over them. Forward mode
remembers no step. It carries along what it would need, the *influence* of the
parameters `theta` on the state,

    J_t = ds_t/dtheta = (ds_t/ds_{t-1}) J_{t-1} + (the step's own d s_t/dtheta)    (1)
    dE/dtheta = sum_t dE_t/ds_t J_t                                                (2)

and so knows the gradient of everything read so far at any moment. That it shares
neither a tape nor a loop with the engine makes it an oracle for it; its price makes it
one for small networks alone.

Reference: Williams & Zipser, "A learning algorithm for continually running fully
recurrent neural networks", 1989, equations 10 to 12, where the influence is `p`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bptt.cells.nest import Leaves
from bptt.verify.steps import Steps, steps_of_module
from bptt.verify.subject import undisturbed

StepLoss = Callable[[int, Tensor], Tensor]


def rtrl(
    module: torch.nn.Module,
    x: Tensor,
    hx: Any = None,
    *,
    dy: Tensor | None = None,
    loss: StepLoss | None = None,
    resets: Tensor | None = None,
) -> dict[str, Tensor]:
    """The gradient of a module's parameters, carried forward step by step.

    Equals full BPTT up to rounding, whatever the module's truncation. The Jacobians of
    a single step come from autograd, all rows and all components at once, for the stack
    of layers as torch.nn's cells compute them and for any cell as it is called; where a
    cell defines a derivative of its own, as the surrogate of a spike, it is that one.

    A step costs O(S^2 P) operations and O(S P) memory for each row, with S the width of
    the state, all layers and parts, and P the number of parameters; the number of steps
    costs no memory.

    Args:
        module: `bptt.RNN`, `GRU`, `LSTM` or torch.nn's, of any number of layers in one
            direction, without projections and without dropout (or in evaluation mode);
            or a `bptt.Recurrent`, whose cell must not draw random numbers.
        x: as the module takes it, with a batch axis: (time, batch, ...).
        hx: the state before the first step, as the module takes it. Its influence
            starts from zero, but for an `initial_state` that reads parameters.
        dy: errors `dE/dy` of the module's outputs, shaped as these.
        loss: instead of `dy`: from the step `t` and its output `y_t` (batch, ...) to a
            scalar; `E` is the sum over steps.
        resets: as the module takes them, bool: True zeroes a row's state, and with it
            all influence on it, before that step.

    Returns:
        `dE` of each parameter that requires a gradient, by its name in the module.

    Raises:
        TypeError: `module` is none of these, or both or neither of `dy` and `loss` are
            given.
        ValueError: an argument does not fit, or the module cannot be run in this way;
            also where a cell mixes the rows of a batch.

    >>> from bptt import GRU
    >>> gru = GRU(2, 3, num_layers=2)
    >>> x, dy = torch.randn(6, 4, 2), torch.randn(6, 4, 3)
    >>> forward = rtrl(gru, x, dy=dy)
    >>> gru(x)[0].backward(dy)
    >>> torch.allclose(forward["weight_hh_l0"], gru.weight_hh_l0.grad, atol=1e-5)
    True
    """
    if (dy is None) == (loss is None):
        raise TypeError(
            "give either dy, the errors of the outputs, or loss, a function of a step "
            f"and its output; got {'neither' if dy is None else 'both'}"
        )
    with undisturbed(x.device):
        steps = steps_of_module(module, x, hx, resets, dy)
        with torch.enable_grad():
            return _gradients(module, steps, loss)


def _gradients(
    module: torch.nn.Module, steps: Steps, loss: StepLoss | None
) -> dict[str, Tensor]:
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    theta = tuple(parameters.values())
    gradients = [torch.zeros_like(p) for p in theta]
    leaves = steps.initial()
    influence = _jacobians(_flat(leaves), (), theta)[1]
    for t, x in enumerate(steps.x):
        before = _before(leaves)
        if steps.resets is not None:
            before, influence = _reset(before, influence, steps.resets[t])
        y, leaves = steps.step(x, before)
        dy = _errors(t, y, steps, loss)
        carried = [s for s in before if s.requires_grad]
        ds, direct = _errors_of_step(y, dy, carried, theta)
        for gradient, own, J in zip(gradients, direct, influence, strict=True):
            gradient += own + torch.einsum("bs,bs...->...", ds, J)  # (2)
        A, own_influence = _jacobians(_flat(leaves), carried, theta)
        influence = _carried(A, influence, own_influence)
    return dict(zip(parameters, gradients, strict=True))


def _carried(
    A: Tensor, influence: Sequence[Tensor], own: Sequence[Tensor]
) -> list[Tensor]:
    """Equation (1), parameter by parameter: each (batch, state, *parameter)."""
    return [
        torch.einsum("bij,bj...->bi...", A, J) + direct
        for J, direct in zip(influence, own, strict=True)
    ]


def _before(leaves: Leaves) -> Leaves:
    """The state as the next step's variables: nothing behind them is remembered."""
    return tuple(
        leaf.detach().clone().requires_grad_(leaf.is_floating_point())
        for leaf in leaves
    )


def _reset(
    leaves: Leaves, influence: Sequence[Tensor], where: Tensor
) -> tuple[Leaves, list[Tensor]]:
    def zeroed(t: Tensor) -> Tensor:
        return t.detach().masked_fill(where.reshape(-1, *[1] * (t.dim() - 1)), 0)

    state = tuple(
        zeroed(leaf).requires_grad_(leaf.is_floating_point()) for leaf in leaves
    )
    return state, [zeroed(J) for J in influence]


def _flat(leaves: Leaves) -> Tensor:
    """(batch, state): what of the state can have an influence on it, side by side."""
    parts = [leaf.reshape(len(leaf), -1) for leaf in leaves if leaf.is_floating_point()]
    return torch.cat(parts, dim=1)


def _errors(t: int, y: Tensor, steps: Steps, loss: StepLoss | None) -> Tensor:
    """`dE_t/dy_t`."""
    if loss is None:
        assert steps.dy is not None
        return steps.dy[t]
    output = y.detach().requires_grad_()
    value = loss(t, output)
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = (
            f"shape {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else type(value).__name__
        )
        raise ValueError(f"loss must return a scalar for each step; got {given}")
    if not value.requires_grad:
        return torch.zeros_like(output)
    (found,) = torch.autograd.grad(value.sum(), output, allow_unused=True)
    return torch.zeros_like(output) if found is None else found


def _errors_of_step(
    y: Tensor, dy: Tensor, before: Sequence[Tensor], theta: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The errors that this step hands to its state (batch, state) and to parameters."""
    inputs = [*before, *theta]
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if y.requires_grad:
        found = torch.autograd.grad(y, inputs, dy, retain_graph=True, allow_unused=True)
    filled = [
        torch.zeros_like(t) if g is None else g
        for t, g in zip(inputs, found, strict=True)
    ]
    ds = torch.cat([d.reshape(len(d), -1) for d in filled[: len(before)]], dim=1)
    return ds, filled[len(before) :]


def _jacobians(
    state: Tensor, before: Sequence[Tensor], theta: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Of a step's state (batch, state): by the state before it, and by parameters.

    Returns:
        `A` (batch, state, state before), and for each parameter (batch, state,
        *parameter).
    """
    batch, width = state.shape
    inputs = [*before, *theta]
    rows = state.new_zeros(batch * width, 0)
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if state.requires_grad:
        found = _of_all_components(state.flatten(), inputs)
    filled = [
        rows.new_zeros(len(rows), *t.shape) if g is None else g
        for t, g in zip(inputs, found, strict=True)
    ]
    of_theta = [g.reshape(batch, width, *g.shape[1:]) for g in filled[len(before) :]]
    if not before:
        return state.new_zeros(batch, width, 0), of_theta
    blocks = [g.reshape(batch, width, batch, -1) for g in filled[: len(before)]]
    return _own_rows(torch.cat(blocks, dim=-1)), of_theta


def _of_all_components(flat: Tensor, inputs: Sequence[Tensor]) -> Sequence[Any]:
    """The gradients of every component, stacked."""
    unit = torch.eye(flat.numel(), dtype=flat.dtype, device=flat.device)
    options = {"retain_graph": True, "allow_unused": True}
    try:
        return torch.autograd.grad(flat, inputs, unit, is_grads_batched=True, **options)
    except RuntimeError:  # a derivative in Python that vmap cannot follow
        single = [torch.autograd.grad(flat, inputs, e, **options) for e in unit]
    return [
        None if parts[0] is None else torch.stack(parts)
        for parts in zip(*single, strict=True)
    ]


def _own_rows(blocks: Tensor) -> Tensor:
    """The diagonal (batch, state, before) of (batch, state, batch, before)."""
    own = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    if torch.count_nonzero(blocks) != torch.count_nonzero(own):
        raise ValueError(
            "the cell mixes the rows of a batch: a row's state depends on the state of "
            "another row; every row must be computed by itself"
        )
    return own
