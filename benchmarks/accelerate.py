"""How much faster do users' training scripts get by `bptt.accelerate(model)`?

    python benchmarks/accelerate.py [--quick] [--json RESULT] [--rounds N]
        [--only SUBSTRING ...]

Every model is written with torch.nn alone, and its script is a function of the model:
forward, loss, backward, clipping, an update by Adam. A deep copy of the model is
accelerated. Both copies then make the same updates from the same seed, dropout
included, until their losses are found to agree; then the updates are timed by turns in
one process on the same threads. A figure is the time of an update with torch.nn divided
by that with bptt.

- "seq2seq": a GRU reads 20 words and hands its state to another, which writes 20.
- "tagger": an LSTM of two layers and two directions over padded sentences of 40 words.
- "language model": an LSTM of two layers with dropout over windows of 35 words, output
  weights tied to the embedding, the state carried on.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bptt
import timing
from timing import alternate, median, ratios

WORDS = 2000
TAGS = 17
CHECKED = 5  # updates whose losses are compared
TOLERANCE = 1e-3  # of a loss; Adam makes much of small differences


class Seq2Seq(nn.Module):
    """The encoder's state starts the decoder."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.source = nn.Embedding(WORDS, width)
        self.target = nn.Embedding(WORDS, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, WORDS)
        self.read, self.written = _ids(32, 20), _ids(32, 21)

    def forward(self) -> Tensor:
        """The loss of one batch."""
        _, state = self.encoder(self.source(self.read))
        y, _ = self.decoder(self.target(self.written[:, :-1]), state)
        return F.cross_entropy(self.out(y).flatten(0, 1), self.written[:, 1:].flatten())


class Tagger(nn.Module):
    """A tag for every word, from both sides."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.rnn = nn.LSTM(
            width, width, 2, batch_first=True, bidirectional=True, dropout=0.3
        )
        self.out = nn.Linear(2 * width, TAGS)
        self.words, self.tags = _ids(32, 40), _ids(32, 40) % TAGS

    def forward(self) -> Tensor:
        """The loss of one batch."""
        y, _ = self.rnn(self.embed(self.words))
        return F.cross_entropy(self.out(y).flatten(0, 1), self.tags.flatten())


class WordModel(nn.Module):
    """A language model whose output weights are the embedding."""

    def __init__(self, width: int = 256, window: int = 35) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.drop = nn.Dropout(0.2)
        self.rnn = nn.LSTM(width, width, 2, dropout=0.2)
        self.out = nn.Linear(width, WORDS)
        self.out.weight = self.embed.weight
        self.stream, self.window = _ids(window + 1, 20), window
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self) -> Tensor:
        """The loss of one window."""
        x = self.drop(self.embed(self.stream[:-1]))
        y, (h, c) = self.rnn(x, self.state)
        self.state = h.detach(), c.detach()
        logits = self.out(self.drop(y))
        return F.cross_entropy(logits.flatten(0, 1), self.stream[1:].flatten())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "seq2seq, GRU": Seq2Seq,
    "tagger, bidirectional LSTM": Tagger,
    "language model, LSTM": WordModel,
}


def main() -> None:
    """Measure each model; print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="RESULT")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--only", nargs="+", default=[""], metavar="SUBSTRING")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 15)
    records = []
    for name, make in MODELS.items():
        if any(part in name for part in arguments.only):
            torch.manual_seed(0)
            record = {"model": name, **compare(make(), rounds)}
            records.append(record)
            print(f"{name:<30}{record['ratio']} times as fast")
    result = {"question": __doc__.splitlines()[0], **timing.about()}
    timing.write_json(arguments.json, {**result, "figures": records})


def compare(model: nn.Module, rounds: int) -> dict[str, Any]:
    """Times of an update before and after, once their losses agree."""
    twin = copy.deepcopy(model)
    replaced = bptt.accelerate(twin).replaced
    if not replaced:
        raise SystemExit("nothing was replaced")
    update, updated = script(model), script(twin)
    losses = [_losses(run) for run in (update, updated)]
    difference = timing.relative_difference(losses[1], losses[0])
    if not difference <= TOLERANCE:
        raise SystemExit(f"the losses differ by {difference:.1e}")
    times = alternate({"torch": update, "bptt": updated}, rounds)
    return {
        "replaced": replaced,
        "loss_difference": difference,
        "ratio": ratios(times["torch"], times["bptt"]),
        "torch_ms": 1e3 * median(times["torch"]),
        "bptt_ms": 1e3 * median(times["bptt"]),
    }


def script(model: nn.Module) -> Callable[[], Tensor]:
    """The user's script: an update, as a function that returns the loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def update() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return update


def _losses(update: Callable[[], Tensor]) -> Tensor:
    torch.manual_seed(1)
    return torch.stack([update() for _ in range(CHECKED)])


def _ids(*shape: int) -> Tensor:
    return torch.randint(WORDS, shape)


if __name__ == "__main__":
    main()
