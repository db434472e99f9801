"""What one step of a recurrent layer computes, and its derivative, side by side.

`Cell` and its kinds are the engine's; the others are modules for `bptt.Recurrent`, and
what a module may offer it.
"""

from bptt.cells.base import Cell as Cell
from bptt.cells.base import StepTape as StepTape
from bptt.cells.base import Tape as Tape
from bptt.cells.contract import DifferentiableCell as DifferentiableCell
from bptt.cells.contract import HasInitialState as HasInitialState
from bptt.cells.contract import SplitCell as SplitCell
from bptt.cells.gru import GRUCell as GRUCell
from bptt.cells.layer_norm_lstm import LayerNormLSTM as LayerNormLSTM
from bptt.cells.leaky_integrate_and_fire import (
    LeakyIntegrateAndFire as LeakyIntegrateAndFire,
)
from bptt.cells.leaky_rate import LeakyRate as LeakyRate
from bptt.cells.linear_recurrence import LinearRecurrence as LinearRecurrence
from bptt.cells.lstm import LSTMCell as LSTMCell
from bptt.cells.minimal_gated_unit import MinimalGatedUnit as MinimalGatedUnit
from bptt.cells.peephole_lstm import PeepholeLSTM as PeepholeLSTM
from bptt.cells.rnn import ReLUCell as ReLUCell
from bptt.cells.rnn import TanhCell as TanhCell
