"""The recurrent modules: drop-ins for torch.nn's."""

from bptt.modules.layers import GRU as GRU
from bptt.modules.layers import LSTM as LSTM
from bptt.modules.layers import RNN as RNN
from bptt.modules.recurrent import Recurrent as Recurrent
from bptt.modules.stateful import Stateful as Stateful
from bptt.modules.swap import Accelerated as Accelerated
from bptt.modules.swap import accelerate as accelerate
