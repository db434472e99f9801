"""What a module keeps beside its loops, which share what remains of a budget."""

from typing import cast

import torch
from torch import Tensor

from bptt.memory import Budget
from bptt.modules.arrangement import Arrangement


def between_loops(
    module: torch.nn.RNNBase, given: int | str | None, batch: Arrangement
) -> Budget | None:
    """The budget of each loop of a module, with what is kept outside of the loops.

    Args:
        module: whose loops they are.
        given: its `memory_budget`.
        batch: what it is called with.
    """
    if given is None:
        return None
    budget = Budget.parse(given)
    width = cast(Tensor, module.weight_hh_l0).element_size()
    output = module.proj_size or module.hidden_size
    x = batch.x
    inputs = x.shape[-1] if x.is_floating_point() else 1
    steps = x.numel() // inputs
    input_bytes = x.numel() * x.element_size()
    output_bytes = 2 * steps * output * width
    held = 0
    if batch.places is not None:  # packed here: input, errors, and where they stand
        held += input_bytes + output_bytes + 16 * batch.places.size
    if not module.bidirectional:
        return budget.shared(1, held, 0)
    # The reversed input; between layers the outputs, as they are and reversed,
    # their masks, and on the way back their errors.
    held += input_bytes + (8 * steps if batch.rows.is_ragged else 0)
    between = 5 + (module.training and module.dropout > 0)
    held += (module.num_layers - 1) * between * output_bytes
    widest = max(module.input_size if x.is_floating_point() else 0, output)
    if module.num_layers > 1:
        widest = max(widest, 2 * output)
    return budget.shared(2 * module.num_layers, held, widest)
