"""What one step of a recurrent layer computes, and its derivative, side by side."""

from bptt.cells.base import Cell as Cell
from bptt.cells.base import StepTape as StepTape
from bptt.cells.base import Tape as Tape
from bptt.cells.contract import DifferentiableCell as DifferentiableCell
from bptt.cells.contract import HasInitialState as HasInitialState
from bptt.cells.contract import SplitCell as SplitCell
from bptt.cells.gru import GRUCell as GRUCell
from bptt.cells.lstm import LSTMCell as LSTMCell
from bptt.cells.rnn import ReLUCell as ReLUCell
from bptt.cells.rnn import TanhCell as TanhCell
