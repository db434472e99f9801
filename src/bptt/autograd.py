"""The loop through time as one operation of PyTorch's autograd.

The forward pass keeps the tape and builds no graph of steps; the backward pass runs the
loop of `through_time` with the truncation: by the native core where it applies, else by
the definition. Where a derivative of the gradient is asked
for (`create_graph=True`), the backward pass runs the same loop differentiably, so
double backward holds under every truncation. Within a memory budget that not all fits,
`recompute` keeps states instead of the tape. Inside `torch.func` transforms and
forward-mode differentiation the forward pass is left to them to differentiate.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bptt import costs, recompute, through_time
from bptt.cells import Cell, Tape
from bptt.cells.base import State
from bptt.kernels import choice, native, ready
from bptt.kernels.ready import Ready
from bptt.masks import PackedMask, numbers
from bptt.memory import Budget, Plan
from bptt.outside import eager as eager
from bptt.outside import inside_transform as inside_transform
from bptt.places import Places
from bptt.recompute import by_layer, stacked
from bptt.rows import Rows
from bptt.through_time import Layer
from bptt.truncation import Truncation


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
        and native.applies(layers, x, (*numbers(masks), *tensors), rows)
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
        return _defined(layers, x, initial, numbers(masks), rows)
    packed = tuple(mask for mask in masks if isinstance(mask, PackedMask))
    plain = [mask for mask in masks if isinstance(mask, Tensor)]
    kernel = (
        choice.active()
        if native.applies(layers, x, (*plain, *tensors), rows)
        else choice.TORCH
    )
    if torch.is_grad_enabled() and _any_requires_grad(x, tensors):
        cells = tuple(layer.cell for layer in layers)
        division = None
        if budget is not None:
            division = costs.plan_for(
                kernel, layers, x, packed, truncation, rows, budget
            )
        if division is None:
            masks, packed = numbers(masks), ()
        else:
            masks = plain
        plan = _Plan(cells, truncation, rows, len(masks), kernel, division, packed)
        y, *final = _ThroughTime.apply(  # type: ignore[no-untyped-call]
            plan, layers, x, *masks, *tensors
        )
        return y, tuple(final)
    plain = numbers(masks)
    if kernel != choice.TORCH:
        y, end, _ = native.forward(kernel, layers, x, initial, plain, rows, keep=False)
        return y, end
    return _defined(layers, x, initial, plain, rows)


def run_ready(
    prepared: Ready,
    cell: Cell,
    weights: Sequence[Sequence[Tensor]],
    x: Tensor,
    truncation: Truncation,
) -> tuple[Tensor, State]:
    """`run` of what `ready.prepare` has found fit, without masks and budget.

    Args:
        prepared: for these weights and this input, which has a batch axis if there is
            anything to differentiate.
        cell: of every layer.
        weights: of each layer, as given to `ready.prepare`.
        x: as given there.
        truncation: which errors go how far back.

    Raises:
        ValueError, IndexError: of sizes and ids.
    """
    tensors: list[Tensor | None] = []
    for layer in weights:
        tensors += layer
        if not prepared.biased:
            tensors += (None, None)
    zeros = prepared.initial if prepared.from_zeros else ()
    if not zeros:
        tensors += prepared.initial
    if torch.is_grad_enabled() and _any_requires_grad(x, tensors):
        rows = prepared.rows or Rows.alike(*prepared.sizes[:2])
        cells = (cell,) * len(weights)
        chunk = native.chunk_of(truncation, rows) if len(weights) == 1 else None
        plan = _Plan(
            cells, truncation, rows, 0, prepared.kernel, None, (), zeros, chunk
        )
        y, *final = _apply(  # type: ignore[no-untyped-call]
            plan, prepared, x, *tensors
        )
        return y, tuple(final)
    y, end, _ = ready.run(prepared, keep=False)
    return y, end


class _Plan(NamedTuple):
    """What tells the flat tensors of the autograd function apart again."""

    cells: tuple[Cell, ...]
    truncation: Truncation
    rows: Rows
    masks: int
    kernel: str
    division: Plan | None  # where not all is kept
    packed: tuple[PackedMask, ...]
    zeros: State = ()  # the state, where it is not among the tensors
    chunk: int | None = None  # `native.chunk_of` them, where the short way back may do

    def layers(self, tensors: Sequence[Tensor | None]) -> list[Layer]:
        """The inverse of `_weights`."""
        return [
            Layer(cell, *tensors[4 * at : 4 * at + 4])  # type: ignore[arg-type]
            for at, cell in enumerate(self.cells)
        ]

    def state(self, tensors: Sequence[Tensor | None]) -> State:
        """What follows the weights, or zeros that nobody wants the error of."""
        return self.zeros or tuple(tensors[4 * len(self.cells) :])  # type: ignore[arg-type]


class _ThroughTime(torch.autograd.Function):
    """(plan, layers, x, masks, weights, state) -> (outputs, final state).

    In place of the layers, what `ready.prepare` has made of them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: _Plan,
        layers: Sequence[Layer] | Ready,
        x: Tensor,
        *tensors: Tensor | None,
    ) -> Any:
        """Keep the inputs and the tape; the tensors are masks, weights, the state."""
        tapes: list[Tape] = []
        kept: State = ()
        if isinstance(layers, Ready):
            y, final, tapes = ready.run(layers, keep=True)
            return _keep(ctx, plan, (x, *tensors), kept, tapes, y, final)
        masks = [m for m in tensors[: plan.masks] if m is not None]
        initial = plan.state(tensors[plan.masks :])
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
        return _keep(ctx, plan, (x, *tensors), kept, tapes, y, final)

    @staticmethod
    @eager
    def backward(ctx: Any, dy: Tensor | None, *dfinal: Tensor | None) -> Any:
        """Run the loop; differentiably, when a graph of the gradient is asked for."""
        plan: _Plan = ctx.plan
        saved = ctx.saved_tensors  # asked for once, as torch's checkpoint wants it
        needs = ctx.needs_input_grad
        if plan.chunk is not None:
            done = _back_the_short_way(plan, saved, needs, dy, dfinal)
            if done is not None:
                return done
        arguments = len(needs) - 2  # without plan and layers
        x, *tensors = saved[:arguments]
        kept = list(saved[arguments:])
        masks = tensors[: plan.masks]
        layers = plan.layers(tensors[plan.masks :])
        initial = plan.state(tensors[plan.masks :])
        if dy is None:
            dy = _zeros_for(x, initial[0], dfinal, plan)
        needs_dx = needs[2] and x.is_floating_point()
        needs_dstate = not plan.zeros and any(needs[-len(initial) :])
        errors = (dy, *dfinal)
        is_plain = not (
            torch.is_grad_enabled() or inside_transform() or _are_batched(errors)
        )
        is_native = plan.kernel != choice.TORCH
        applies = (
            is_native and is_plain and native.applies(layers, x, errors, plan.rows)
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
            all_masks = masks or numbers(plan.packed)
            ends = tuple(
                dy.new_zeros(initial[0].shape) if d is None else d for d in dfinal
            )
            rows, places = plan.rows, None
            if rows.padding is not None:
                places = Places.of(rows, rows.padding, x.device)
                rows = rows.packed()
                x, dy = _packed(x, places), _packed(dy, places)
            dx, gradients = through_time.backward(
                layers,
                x,
                all_masks,
                through_time.forward(layers, x, by_layer(initial), all_masks, rows)
                if anew
                else _tapes(kept, ctx.tape_sizes, rows.cut(x.device)),
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
            *(() if plan.zeros else dstate or (None for _ in initial)),
        )


def _keep(
    ctx: Any,
    plan: _Plan,
    inputs: tuple[Tensor | None, ...],
    kept: State,
    tapes: Sequence[Tape],
    y: Tensor,
    final: State,
) -> tuple[Tensor, ...]:
    """Keep the inputs, what is kept besides and the tapes; returns the outputs."""
    ctx.plan = plan
    ctx.set_materialize_grads(False)
    for tape in tapes:
        kept += tape.states + tape.kept
    ctx.save_for_backward(*inputs, *kept)
    ctx.tape_sizes = [(len(tape.states), len(tape.kept)) for tape in tapes]
    return y, *final


# Without a search for what a transform has left, which `ready.prepare` refuses: 5 us.
_apply = super(torch.autograd.Function, _ThroughTime).apply


def _back_the_short_way(
    plan: _Plan,
    saved: Sequence[Tensor | None],
    needs: Sequence[bool],
    dy: Tensor | None,
    dfinal: Sequence[Tensor | None],
) -> tuple[Any, ...] | None:
    """What `backward` returns, by `ready.run_back`; None where that is not for it."""
    given = 0 if plan.zeros else len(dfinal)  # parts of the state
    if (
        dy is None
        or torch.is_grad_enabled()
        or inside_transform()
        or (given and any(needs[-given:]))
        or _are_batched((dy, *dfinal))
    ):
        return None
    assert plan.chunk is not None
    gradients = ready.run_back(
        plan.kernel,
        plan.cells[0],
        plan.rows,
        plan.chunk,
        saved,
        dy,
        dfinal,
        needs_dx=needs[2],
    )
    return gradients and (None, None, *gradients, *(None,) * given)


def _zeros_for(
    x: Tensor, h: Tensor, dfinal: Sequence[Tensor | None], plan: _Plan
) -> Tensor:
    """The error of outputs that have none.

    Made from an error that is given, for vmap over the backward pass: what is summed in
    place must be batched there as the errors are.
    """
    given = next((d for d in dfinal if d is not None), h)
    shape = (*plan.rows.outer, h.shape[-1])
    is_whole = plan.division is None
    return given.new_zeros(shape if is_whole else 1).expand(shape)


def _packed(padded: Tensor, places: Places) -> Tensor:
    """The steps of a padded sequence of floats; ids are packed already."""
    if not padded.is_floating_point():
        return padded
    # `flatten` knows no vmap over the backward pass.
    return places.take(padded.reshape(places.size, padded.shape[-1]))


def _any_requires_grad(x: Tensor, tensors: Sequence[Tensor | None]) -> bool:
    return x.requires_grad or any(t is not None and t.requires_grad for t in tensors)


def _are_batched(errors: Sequence[Tensor | None]) -> bool:
    """Whether `torch.autograd.grad(is_grads_batched=True)` hands in many at once."""
    is_batched = torch._C._functorch.is_legacy_batchedtensor
    return any(d is not None and is_batched(d) for d in errors)


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
