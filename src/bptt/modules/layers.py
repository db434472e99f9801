"""RNN, GRU and LSTM: drop-ins for torch.nn's, trained by the loop through time.

They take the constructor arguments, the state_dict keys and the calls of torch.nn's
modules and are subclasses of them; `truncation` decides which errors go how far back.
"""

from typing import Any, final

import torch

from bptt.cells import Cell, GRUCell, LSTMCell, ReLUCell, TanhCell
from bptt.modules.base import ThroughTime
from bptt.random_truncation import Policy


@final
class RNN(ThroughTime, torch.nn.RNN):
    """Elman network, `h_t = f(U x_t + W h_{t-1} + b)` (Elman, 1990).

    Args:
        input_size: width of the input, or the number of ids.
        hidden_size: width of the state.
        num_layers: layers, each reading the outputs of the one below.
        nonlinearity: "tanh" or "relu".
        bias: whether the layers have biases `b_ih` and `b_hh`.
        batch_first: whether input and output are (batch, time, ...).
        dropout: probability of dropping an output between layers, in training mode.
        bidirectional: whether a second direction runs from the end.
        device: where the weights live.
        dtype: of the weights.
        truncation: which errors go how far back; None is full BPTT over the given
            sequence.
        memory_budget: what may be kept for the backward pass, in bytes or as "512MB"
            or "16 MiB": beyond inputs, weights, outputs and their gradients. What does
            not fit is computed again. None keeps all.

    Raises:
        ValueError, TypeError: as torch.nn.RNN; or a truncation of a bidirectional
            stack, which is not defined; or no size of memory, or one beside a
            `RandomTruncation`. Calls raise ValueError,
            naming the least that is enough, if memory_budget is too small for them.

    >>> from bptt import Truncation
    >>> rnn = RNN(10, 20, truncation=Truncation.per_output(4))
    >>> y, h_n = rnn(torch.randn(7, 3, 10))
    >>> y.shape, h_n.shape
    (torch.Size([7, 3, 20]), torch.Size([1, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        truncation: Policy | None = None,
        memory_budget: int | str | None = None,
    ) -> None:
        torch.nn.RNN.__init__(
            self,
            input_size,
            hidden_size,
            num_layers,
            nonlinearity,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self._configure(truncation, memory_budget)

    def _cell(self) -> Cell:
        return TanhCell() if self.mode == "RNN_TANH" else ReLUCell()


@final
class GRU(ThroughTime, torch.nn.GRU):
    """Gated recurrent unit (Cho et al., 2014), in torch.nn's form.

    Args:
        input_size: width of the input, or the number of ids.
        hidden_size: width of the state.
        num_layers: layers, each reading the outputs of the one below.
        bias: whether the layers have biases `b_ih` and `b_hh`.
        batch_first: whether input and output are (batch, time, ...).
        dropout: probability of dropping an output between layers, in training mode.
        bidirectional: whether a second direction runs from the end.
        device: where the weights live.
        dtype: of the weights.
        truncation: which errors go how far back; None is full BPTT over the given
            sequence.
        memory_budget: what may be kept for the backward pass, in bytes or as "512MB"
            or "16 MiB": beyond inputs, weights, outputs and their gradients. What does
            not fit is computed again. None keeps all.

    Raises:
        ValueError, TypeError: as torch.nn.GRU; or a truncation of a bidirectional
            stack, which is not defined; or no size of memory, or one beside a
            `RandomTruncation`. Calls raise ValueError,
            naming the least that is enough, if memory_budget is too small for them.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        truncation: Policy | None = None,
        memory_budget: int | str | None = None,
    ) -> None:
        torch.nn.GRU.__init__(
            self,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self._configure(truncation, memory_budget)

    def _cell(self) -> Cell:
        return GRUCell()


@final
class LSTM(ThroughTime, torch.nn.LSTM):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997) with a forget gate.

    Args:
        input_size: width of the input, or the number of ids.
        hidden_size: width of the state's parts h and c.
        num_layers: layers, each reading the outputs of the one below.
        bias: whether the layers have biases `b_ih` and `b_hh`.
        batch_first: whether input and output are (batch, time, ...).
        dropout: probability of dropping an output between layers, in training mode.
        bidirectional: whether a second direction runs from the end.
        proj_size: width of a projection of h, if not 0; under full BPTT, without
            lengths, resets and a memory budget, it runs in torch.nn.
        device: where the weights live.
        dtype: of the weights.
        truncation: which errors go how far back; None is full BPTT over the given
            sequence.
        memory_budget: what may be kept for the backward pass, in bytes or as "512MB"
            or "16 MiB": beyond inputs, weights, outputs and their gradients. What does
            not fit is computed again. None keeps all.

    Raises:
        ValueError, TypeError: as torch.nn.LSTM; or a truncation of a bidirectional
            stack, which is not defined; or no size of memory, or one beside a
            `RandomTruncation`. Calls raise ValueError,
            naming the least that is enough, if memory_budget is too small for them.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        truncation: Policy | None = None,
        memory_budget: int | str | None = None,
    ) -> None:
        torch.nn.LSTM.__init__(
            self,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device=device,
            dtype=dtype,
        )
        self._configure(truncation, memory_budget)

    def _cell(self) -> Cell:
        return LSTMCell()
