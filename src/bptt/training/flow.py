"""How far back the gradient of a trained language model goes, over parts of a text."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bptt.errors import InputError
from bptt.flow import FlowEstimates, GradientFlow, gradient_flow
from bptt.language_model import LanguageModel
from bptt.text import IGNORE, Sentences, Stream
from bptt.text.batches import Rows, sentence_rows
from bptt.training.config import TrainingConfig
from bptt.truncation import Truncation

_BURN_IN = 256  # tokens that a row reads before its own, so that its state is not cold
_WINDOWS = 4  # of training, that a row has
_MOST_STEPS = 512
_FEWEST_STEPS = 64


@dataclass(frozen=True)
class FlowPlan:
    """Which parts of a text are looked at.

    Attributes:
        rows: in a batch.
        batches: each a sample of what is estimated; of sentences there is one.
        steps: of a row; None for four windows of the training, 64 to 512.
    """

    rows: int = 8
    batches: int = 4
    steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "batches", "steps"):
            value, least = getattr(self, name), 2 if name == "steps" else 1
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}; got {value}")


def flow_over(
    model: LanguageModel,
    truncation: Truncation,
    window: int | None,
    text: Stream | Sentences,
    plan: FlowPlan,
    progress: Callable[[int, int], object] | None = None,
) -> FlowEstimates:
    """Gradient flow of the model's loss over parts of a text, spread evenly over it.

    The model runs as in evaluation, without dropout. Rows of a stream begin with the
    state that the text before them has left.

    Args:
        model: is left as it was.
        truncation: that it was trained with, over the steps of a row.
        window: steps of its training's window; None where that was a sentence.
        text: encoded for the model.
        plan: how much of it.
        progress: is told the lags done, of all batches, and their number.

    Raises:
        InputError: the text is too short for a row of two steps.
    """
    groups = _groups(text, window, plan)
    before = model.truncation
    was_training = model.training
    model.eval()
    model.truncation = truncation
    try:
        flows = tuple(
            flow_of_rows(
                model, text.ids, rows, progress=_after(progress, at, len(groups))
            )
            for at, rows in enumerate(groups)
        )
        for flow in flows:
            _ = flow.biases  # while the progress is being watched
    finally:
        model.truncation = before
        model.train(was_training)
    return FlowEstimates(flows)


@dataclass(frozen=True)
class Stretch:
    """A stretch of text that a model has read, and the errors of its predictions.

    Attributes:
        ids: (steps + 1,), what was read and, last, what the last output was to predict.
        losses: `E_t`, nats, of the prediction of `ids[t + 1]`.
        flow: of the *sum* of the losses, so that its norms are those of `dE_t/ds_k`.
    """

    ids: np.ndarray
    losses: list[float]
    flow: GradientFlow


def flow_of_stretch(
    model: LanguageModel, text: Stream | Sentences, steps: int
) -> Stretch:
    """One stretch from the middle of a text, or its longest sentence up to `steps`.

    The model runs as in evaluation; of a stream it has read up to 256 tokens before.

    Raises:
        InputError: the text is too short for two steps.
    """
    if isinstance(text, Sentences):
        rows = sentence_rows(text, steps)
        row = rows[np.array([int(rows.lengths.argmax())])]
    else:
        steps = min(steps, len(text.ids) - 1)
        middle = np.array([(len(text.ids) - 1 - steps) // 2])
        row = Rows(np.maximum(middle - _BURN_IN, 0), middle, middle + steps)
    first, stop = int(row.first[0]), int(row.stop[0])
    if stop - first < 2:
        raise InputError("the text has no stretch of two steps; give more text")
    ids = text.ids[first : stop + 1]
    device = model.decoder.weight.device
    inputs = torch.from_numpy(ids[:-1].astype(np.int64)).unsqueeze(1).to(device)
    targets = torch.from_numpy(ids[1:].astype(np.int64)).to(device)
    losses: list[float] = []
    before, was_training = model.truncation, model.training
    model.eval()
    model.truncation = None
    try:
        state = _state_before(model, text.ids, row)

        def loss() -> Tensor:
            logits, _ = model(inputs, state)
            E = F.cross_entropy(logits[:, 0], targets, reduction="none")
            losses.extend(E.tolist())
            return E.sum()

        flow = gradient_flow(model, loss, "recurrent")
    finally:
        model.truncation = before
        model.train(was_training)
    return Stretch(ids, losses, flow)


def trained_truncation(
    config: TrainingConfig, chosen_k2: int | None = None
) -> Truncation:
    """What training cuts in a long row: windows, too, unless passes reach across.

    Args:
        config: how it was trained.
        chosen_k2: with `--k2 auto` the last choice; None before the first one.
    """
    k2 = (chosen_k2 or config.first_k2) if config.k2 == "auto" else config.k2
    if config.k1 is not None and k2 is not None:
        return Truncation(config.k1, k2)
    if config.window is None:
        return Truncation.full()
    return Truncation.chunks(config.window)


def _groups(text: Stream | Sentences, window: int | None, plan: FlowPlan) -> list[Rows]:
    if isinstance(text, Sentences):
        rows = sentence_rows(text, plan.steps or _MOST_STEPS)
        rows = rows[np.flatnonzero(rows.lengths > 1)]
        if not len(rows):
            raise InputError(
                "no sentence has two words, so nothing goes back; give more text"
            )
        count = min(len(rows), plan.rows * plan.batches)
        return [rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]]
    wanted = (window or _FEWEST_STEPS) * _WINDOWS
    steps = plan.steps or min(max(wanted, _FEWEST_STEPS), _MOST_STEPS)
    predictions = len(text.ids) - 1
    steps = min(steps, predictions)
    if steps < 2:
        raise InputError(
            f"the text has {len(text.ids)} token(s); at least 3 are needed for an "
            "error to go back; give more text"
        )
    count = min(plan.rows * plan.batches, max(1, predictions // steps))
    batches = min(plan.batches, count)
    rows_each = count // batches
    last = predictions - steps
    first = np.linspace(0, last, batches * rows_each).astype(np.int64)
    rows = Rows(np.maximum(first - _BURN_IN, 0), first, first + steps)
    # Every batch has rows from all over the text.
    return [rows[np.arange(at, len(rows), batches)] for at in range(batches)]


def flow_of_rows(
    model: LanguageModel,
    ids: np.ndarray,
    rows: Rows,
    *,
    uncounted: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> GradientFlow:
    """Gradient flow of the model's mean loss over one batch of rows.

    Args:
        model: in the mode in which it is to run.
        ids: of the text.
        rows: which begin with the state that the tokens before them have left.
        uncounted: steps at the beginning of each row that the loss leaves out.
        progress: as of `gradient_flow`.
    """
    device = model.decoder.weight.device
    lengths = torch.from_numpy(rows.stop - rows.first)
    steps = int(lengths.max())
    own = Rows(rows.first, rows.first + uncounted, rows.stop)
    batch = own.read(ids, range(steps), starts=True, next_start=steps)
    inputs = torch.from_numpy(batch.inputs).to(device)
    targets = torch.from_numpy(batch.targets).to(device)
    state = _state_before(model, ids, rows)
    is_ragged = bool((lengths < steps).any())

    def loss() -> Tensor:
        logits, _ = model(inputs, state, lengths=lengths if is_ragged else None)
        return F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE
        )

    return gradient_flow(model, loss, "recurrent", progress=progress)


@torch.no_grad()
def _state_before(model: LanguageModel, ids: np.ndarray, rows: Rows) -> object:
    """What each row's state is after the tokens before its first; None where cold."""
    device = model.decoder.weight.device
    before = rows.first - rows.begin
    longest = int(before.max())
    if not longest:
        return None
    start = Rows(rows.begin, rows.begin, np.maximum(rows.first, rows.begin + 1))
    batch = start.read(ids, range(longest), starts=True, next_start=longest)
    inputs = torch.from_numpy(batch.inputs).to(device)
    lengths = torch.from_numpy(np.maximum(before, 1))
    _, state = model(inputs, lengths=lengths)
    cold = torch.from_numpy(before == 0).to(device)
    parts = state if isinstance(state, tuple) else (state,)
    parts = tuple(part.masked_fill(cold[None, :, None], 0) for part in parts)
    return parts if isinstance(state, tuple) else parts[0]


def _after(
    progress: Callable[[int, int], object] | None, batch: int, batches: int
) -> Callable[[int, int], object] | None:
    if progress is None:
        return None
    return lambda done, time: progress(batch * time + done, batches * time)
