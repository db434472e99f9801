"""The loop through time as one operation of PyTorch's autograd.

The forward pass keeps the tape and builds no graph of steps; the backward pass runs the
loop of `through_time` with the truncation: by the native core where it applies, else by
the definition. Where a derivative of the gradient is asked
for (`create_graph=True`), the backward pass runs the same loop differentiably, so
double backward holds under every truncation. Within a memory budget that not all fits,
`recompute` keeps states instead of the tape. Inside `torch.func` transforms and
forward-mode differentiation the forward pass is left to them to differentiate.
"""

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from bptt import recompute, through_time
from bptt.cells import Cell, Tape
from bptt.cells.base import State
from bptt.kernels import choice, native
from bptt.memory import Budget, Plan
from bptt.places import Places
from bptt.recompute import PackedMask, by_layer, stacked
from bptt.rows import Rows
from bptt.through_time import Layer
from bptt.truncation import Truncation

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def eager(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """`function`, kept from torch.compile, which would unroll the loop for minutes.

    Loading Dynamo takes seconds, so that waits until something else has loaded it.
    """
    disabled: Callable[_Arguments, _Result] | None = None

    @wraps(function)
    def run_eagerly(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        nonlocal disabled
        if disabled is None:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            disabled = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
        return disabled(*args, **kwargs)

    return run_eagerly


def run(
    layers: Sequence[Layer],
    x: Tensor,
    initial: State,
    masks: Sequence[Tensor | PackedMask],
    truncation: Truncation,
    rows: Rows,
    budget: Budget | None = None,
) -> tuple[Tensor, State]:
    """A stack of layers over a sequence, differentiable as the truncation says.

    Args:
        layers: bottom first.
        x: (time, batch, input) floats or (time, batch) int64 ids; packed if `rows` are
            ragged, but for floats if they have a padding.
        initial: the state before the first step, parts (layers, batch, state).
        masks: as for `through_time.forward`; or packed, which a budget wants.
        truncation: which errors go how far back.
        rows: which steps the rows have, and where they are reset.
        budget: what may be kept for the backward pass; None for all.

    Returns:
        Outputs (time, batch, state) of the top layer, packed if `rows` are ragged, or
        padded as they are with zeros in the padding, and the final state, parts
        (layers, batch, state).

    Raises:
        ValueError: nothing keeps to the budget.
        NotImplementedError: inside a `torch.func` transform or forward-mode
            differentiation with a truncation that cuts something: they differentiate
            the forward pass, where nothing is cut.
    """
    tensors = [*_weights(layers), *initial]
    if rows.padding is not None and not (
        budget is None
        and not inside_transform()
        and native.applies(layers, x, (*_numbers(masks), *tensors), rows)
    ):
        places = Places.of(rows, rows.padding, x.device)
        x, packed_rows = _packed(x, places), rows.packed()
        y, end = run(layers, x, initial, masks, truncation, packed_rows, budget)
        return places.place(y).reshape(*rows.outer, y.shape[-1]), end
    if inside_transform():
        if not truncation.is_full_over(rows.time):
            raise NotImplementedError(
                f"{truncation} has no meaning inside torch.func transforms or "
                "forward-mode differentiation, which differentiate the whole "
                "sequence; set the module's truncation to None there"
            )
        return _defined(layers, x, initial, _numbers(masks), rows)
    packed = tuple(mask for mask in masks if isinstance(mask, PackedMask))
    plain = [mask for mask in masks if isinstance(mask, Tensor)]
    kernel = (
        choice.active()
        if native.applies(layers, x, (*plain, *tensors), rows)
        else choice.TORCH
    )
    if torch.is_grad_enabled() and (
        x.requires_grad or any(t is not None and t.requires_grad for t in tensors)
    ):
        cells = tuple(layer.cell for layer in layers)
        division = None
        if budget is not None:
            division = recompute.plan_for(
                kernel, layers, x, packed, truncation, rows, budget
            )
        if division is None:
            masks, packed = _numbers(masks), ()
        else:
            masks = plain
        plan = _Plan(cells, truncation, rows, len(masks), kernel, division, packed)
        y, *final = _ThroughTime.apply(  # type: ignore[no-untyped-call]
            plan, layers, x, *masks, *tensors
        )
        return y, tuple(final)
    plain = _numbers(masks)
    if kernel != choice.TORCH:
        y, end, _ = native.forward(kernel, layers, x, initial, plain, rows, keep=False)
        return y, end
    return _defined(layers, x, initial, plain, rows)


def inside_transform() -> bool:
    """Whether torch.func or forward-mode differentiation is looking on."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


class _Plan(NamedTuple):
    """What tells the flat tensors of the autograd function apart again."""

    cells: tuple[Cell, ...]
    truncation: Truncation
    rows: Rows
    masks: int
    kernel: str
    division: Plan | None  # where not all is kept
    packed: tuple[PackedMask, ...]

    def layers(self, tensors: Sequence[Tensor | None]) -> list[Layer]:
        """The inverse of `_weights`."""
        return [
            Layer(cell, *tensors[4 * at : 4 * at + 4])  # type: ignore[arg-type]
            for at, cell in enumerate(self.cells)
        ]

    def state(self, tensors: Sequence[Tensor | None]) -> State:
        """What follows the weights."""
        return tuple(tensors[4 * len(self.cells) :])  # type: ignore[arg-type]


class _ThroughTime(torch.autograd.Function):
    """(plan, layers, x, masks, weights, state) -> (outputs, final state)."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: _Plan,
        layers: Sequence[Layer],
        x: Tensor,
        *tensors: Tensor | None,
    ) -> Any:
        """Keep the inputs and the tape; the tensors are masks, weights, the state."""
        masks = [m for m in tensors[: plan.masks] if m is not None]
        initial = plan.state(tensors[plan.masks :])
        tapes: list[Tape] = []
        kept: State = ()
        if plan.division is not None:
            again = recompute.Recomputation(
                plan.division, plan.kernel, layers, x, plan.packed, plan.rows
            )
            y, final, kept = again.forward(initial)
        elif plan.kernel != choice.TORCH:
            y, final, tapes = native.forward(
                plan.kernel, layers, x, initial, masks, plan.rows, keep=True
            )
        else:
            tapes = through_time.forward(layers, x, by_layer(initial), masks, plan.rows)
            y, ends = through_time.outputs(tapes, plan.rows)
            # A copy: changing the outputs in place, as with torch.nn, is allowed.
            y, final = y.clone(), stacked(ends)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        kept += tuple(t for tape in tapes for t in (*tape.states, *tape.kept))
        ctx.save_for_backward(x, *tensors, *kept)
        ctx.tape_sizes = [(len(tape.states), len(tape.kept)) for tape in tapes]
        return y, *final

    @staticmethod
    @eager
    def backward(ctx: Any, dy: Tensor | None, *dfinal: Tensor | None) -> Any:
        """Run the loop; differentiably, when a graph of the gradient is asked for."""
        plan: _Plan = ctx.plan
        saved = ctx.saved_tensors  # asked for once, as torch's checkpoint wants it
        needs = ctx.needs_input_grad
        arguments = len(needs) - 2  # without plan and layers
        x, *tensors = saved[:arguments]
        kept = list(saved[arguments:])
        masks = tensors[: plan.masks]
        layers = plan.layers(tensors[plan.masks :])
        initial = plan.state(tensors[plan.masks :])
        # Zeros come from an error that is given, for vmap over the backward pass: what
        # is summed in place must be batched there as the errors are.
        given = next((d for d in (dy, *dfinal) if d is not None), initial[0])
        if dy is None:
            shape = (*plan.rows.outer, initial[0].shape[-1])
            is_whole = plan.division is None
            dy = given.new_zeros(shape if is_whole else 1).expand(shape)
        needs_dx = needs[2] and x.is_floating_point()
        needs_dstate = any(needs[-len(initial) :])
        is_plain = not (
            torch.is_grad_enabled()
            or inside_transform()
            or any(map(_is_batched, (dy, *dfinal)))
        )
        is_native = plan.kernel != choice.TORCH
        applies = (
            is_native
            and is_plain
            and native.applies(layers, x, (dy, *dfinal), plan.rows)
        )
        if plan.division is not None and is_plain:
            kernel = plan.kernel if applies else choice.TORCH
            again = recompute.Recomputation(
                plan.division, kernel, layers, x, plan.packed, plan.rows
            )
            dx, gradients, dstate = again.backward(
                initial, tuple(kept), dy, dfinal, needs_dx=needs_dx
            )
        elif applies:
            dx, gradients, dstate = native.backward(
                plan.kernel,
                layers,
                x,
                masks,
                _tapes(kept, ctx.tape_sizes, None),
                dy,
                dfinal,
                plan.truncation,
                plan.rows,
                needs_dx=needs_dx,
                needs_dstate=needs_dstate,
            )
        else:
            # The core's tapes are of no use to the definition.
            anew = is_native or torch.is_grad_enabled() or plan.division is not None
            numbers = masks or _numbers(plan.packed)
            ends = tuple(
                given.new_zeros(initial[0].shape) if d is None else d for d in dfinal
            )
            rows, places = plan.rows, None
            if rows.padding is not None:
                places = Places.of(rows, rows.padding, x.device)
                rows = rows.packed()
                x, dy = _packed(x, places), _packed(dy, places)
            dx, gradients = through_time.backward(
                layers,
                x,
                numbers,
                through_time.forward(layers, x, by_layer(initial), numbers, rows)
                if anew
                else _tapes(kept, ctx.tape_sizes, rows.cut()),
                dy,
                by_layer(ends),
                plan.truncation,
                rows,
                needs_dx=needs_dx,
            )
            if dx is not None and places is not None:
                dx = places.place(dx).reshape(saved[0].shape)
            dstate = stacked([g.dstate for g in gradients])
        return (
            None,
            None,
            dx,
            *(None for _ in masks),
            *(d for g in gradients for d in (g.dU, g.dW, g.db_ih, g.db_hh)),
            *(dstate or (None for _ in initial)),
        )


def _packed(padded: Tensor, places: Places) -> Tensor:
    """The steps of a padded sequence of floats; ids are packed already."""
    if not padded.is_floating_point():
        return padded
    # `flatten` knows no vmap over the backward pass.
    return places.take(padded.reshape(places.size, padded.shape[-1]))


def _is_batched(t: Tensor | None) -> bool:
    """Whether `torch.autograd.grad(is_grads_batched=True)` hands in many at once."""
    return t is not None and torch._C._functorch.is_legacy_batchedtensor(t)


def _defined(
    layers: Sequence[Layer],
    x: Tensor,
    initial: State,
    masks: Sequence[Tensor],
    rows: Rows,
) -> tuple[Tensor, State]:
    """`run` by the definition, which leaves its derivative to others."""
    tapes = through_time.forward(layers, x, by_layer(initial), masks, rows)
    y, final = through_time.outputs(tapes, rows)
    return y, stacked(final)


def _numbers(masks: Sequence[Tensor | PackedMask]) -> list[Tensor]:
    """Masks as `through_time` takes them."""
    return [m.numbers() if isinstance(m, PackedMask) else m for m in masks]


def _weights(layers: Sequence[Layer]) -> list[Tensor | None]:
    return [
        weight
        for layer in layers
        for weight in (layer.U, layer.W, layer.b_ih, layer.b_hh)
    ]


def _tapes(
    flat: list[Tensor], sizes: Sequence[tuple[int, int]], cut: Tensor | None
) -> list[Tape]:
    tapes = []
    for states, kept in sizes:
        ends = states + kept
        tapes.append(Tape(tuple(flat[:states]), tuple(flat[states:ends]), cut))
        del flat[: states + kept]
    return tapes
