"""One step of the whole network, its state a vector, by the engine's forward pass.

Autograd differentiates it: what is said about a step's derivative owes nothing to the
derivatives that the engine has for its cells.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bptt import through_time
from bptt.cells import Tape
from bptt.explain.network import Network
from bptt.rows import Rows
from bptt.through_time import Layer


def all_steps(network: Network, x: Tensor) -> list[Tape]:
    """The tapes of the layers over `x` (time, inputs), from the zero state."""
    start = x.new_zeros(1, network.state)
    return _run(network, network.layers, x, start)


def one_step(
    network: Network, layers: Sequence[Layer], x: Tensor, before: Tensor
) -> Tensor:
    """`s_{k-1} -> s_k`, both (rows, state).

    Args:
        network: says how the state is made up.
        layers: to be used instead of the network's own.
        x: (inputs,), the same for all rows.
        before: the states before the step.
    """
    return states(_run(network, layers, x.unsqueeze(0), before))[1]


def states(tapes: Sequence[Tape]) -> Tensor:
    """(time + 1, rows, state), the state before the first step and after each."""
    return torch.cat([part for tape in tapes for part in tape.states], dim=-1)


def _run(
    network: Network, layers: Sequence[Layer], x: Tensor, before: Tensor
) -> list[Tape]:
    parts = [
        tuple(before[:, network.part(at, name)] for name in network.parts)
        for at in range(1, len(layers) + 1)
    ]
    rows = Rows(len(x), len(before))
    return through_time.forward(layers, x.unsqueeze(1), parts, [], rows)
