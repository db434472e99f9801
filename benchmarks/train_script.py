"""How many more tokens a second than a plain torch script does `bptt train` read?

    python benchmarks/train_script.py [TEXT] [--quick] [--json RESULT] [--rounds N]
        [--steps 10] [--fused]

The defaults of `bptt train`: an LSTM of 512 units over one-hot characters, batches of
32 streams by 64 steps, AdamW, gradients clipped to a norm of 1, the state carried on.
The script is what one would write with torch alone: one-hot vectors, `torch.nn.LSTM`,
`torch.nn.Linear`, `torch.optim.AdamW` (`--fused` gives it the fused one, as bptt has),
and a detached state. Both start from the same weights and see batches of the same text.

`bptt train`'s own loop runs, with its metrics and timings; each time it has made as
many updates as make a block, the script makes as many. Without TEXT, the text is the
English reference that ships with Python, as for the command.
"""

import argparse
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F

import timing
from bptt.language_model import LanguageModel
from bptt.text import Batch
from bptt.training import (
    Choice,
    Corpus,
    Measurement,
    Options,
    RunFolder,
    Stopped,
    Trainer,
    TrainingConfig,
    load_corpus,
    resolve,
)
from timing import Figure, Target, ratios

LEAST_RATIO = 1.5
TOLERANCE = 1e-4  # of the largest logit
# The run is stopped when enough is measured; it is never evaluated before.
STEPS = 1_000_000


def main() -> None:
    """Train both by turns, report tokens a second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="RESULT")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--steps", type=int, metavar="N", help="of a block")
    parser.add_argument("--fused", action="store_true")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 9)
    steps = arguments.steps or (1 if arguments.quick else 10)
    options = Options(steps=STEPS)
    texts = (arguments.text,) if arguments.text else ()
    corpus = load_corpus(options, texts, ())
    shape, config = resolve(options, corpus.tokenizer.size)
    torch.manual_seed(config.seed)
    model = LanguageModel(shape, corpus.tokenizer)
    script = Script(model, corpus, config, fused=arguments.fused)
    turns = Turns(script, steps, rounds)
    result = {
        "question": "tokens a second of `bptt train` relative to a plain torch script",
        "text": (
            arguments.text.name if arguments.text else "Python's English reference"
        ),
        "fused_script": arguments.fused,
        "rounds": rounds,
        "steps_a_block": steps,
        **timing.about(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch) / "run")
        folder.create()
        trainer = Trainer(model, config, corpus, folder, turns, lambda: turns.done)
        script.check_same(trainer.batches.batch_at(0), model)
        with suppress(Stopped):
            trainer.run()
    tokens = steps * config.batch * (config.window or 0)
    rates = {
        name: Figure.of([tokens / s for s in block_s])
        for name, block_s in turns.block_s.items()
    }
    ratio = ratios(turns.block_s["script"], turns.block_s["bptt"])
    target = Target("tokens a second, bptt / script", LEAST_RATIO, ratio.median)
    for name, rate in rates.items():
        print(f"{name:<7}{rate.median:10.0f} tokens a second")
    print(f"ratio {ratio}")
    print(target)
    result |= {"tokens_per_s": rates, "ratio": ratio, "targets": [target]}
    timing.write_json(arguments.json, result)


class Turns:
    """Told of each update of `bptt train`; after a block of them, runs the script's."""

    def __init__(self, script: "Script", steps: int, rounds: int) -> None:
        self.script = script
        self.steps = steps
        self.rounds = rounds
        self.block_s: dict[str, list[float]] = {"script": [], "bptt": []}
        self._made = -1  # updates of this block; the first update warms up
        self._started_s = 0.0

    @property
    def done(self) -> bool:
        """Whether every round is measured."""
        return len(self.block_s["script"]) == self.rounds

    def on_step(self, share: float, loss: float, tokens_per_s: float) -> None:
        """After an update."""
        self._made += 1
        if self._made == self.steps:
            self.block_s["bptt"].append(time.perf_counter() - self._started_s)
            self._made = 0
            started_s = time.perf_counter()
            for _ in range(self.steps):
                self.script.step()
            self.block_s["script"].append(time.perf_counter() - started_s)
        if self._made == 0:
            self._started_s = time.perf_counter()

    def on_evaluation(self, step: int, loss: float, measured: Measurement) -> None:
        """Once, before the first update; the script warms up as well."""
        self.script.step()

    def on_choice(self, step: int, before: int, choice: Choice) -> None:
        """There is none: k2 is given."""


class Script:
    """The plain script: its model, its optimiser, and a step of its loop."""

    def __init__(
        self,
        like: LanguageModel,
        corpus: Corpus,
        config: TrainingConfig,
        *,
        fused: bool,
    ) -> None:
        shape = like.config
        self.vocab = shape.vocab
        self.lstm = torch.nn.LSTM(shape.vocab, shape.hidden)
        self.decoder = torch.nn.Linear(shape.hidden, shape.vocab)
        self.lstm.load_state_dict(like.recurrent.state_dict())
        self.decoder.load_state_dict(like.decoder.state_dict())
        self.parameters = [*self.lstm.parameters(), *self.decoder.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.lr,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=fused,
        )
        assert config.window is not None
        self.window = config.window
        self.clip = config.clip
        ids = torch.from_numpy(corpus.train.ids).long()
        length = len(ids) // config.batch
        streams = ids[: length * config.batch].view(config.batch, length)
        self.data = streams.t().contiguous()  # (time, batch)
        self.at = 0
        self.state: tuple[torch.Tensor, torch.Tensor] | None = None

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Forward, from the state that the last window left."""
        x = F.one_hot(ids, self.vocab).float()
        y, (h, c) = self.lstm(x, self.state)
        self.state = (h.detach(), c.detach())
        return self.decoder(y)

    def step(self) -> float:
        """One update; its loss."""
        if self.at + self.window >= len(self.data):
            self.at, self.state = 0, None
        x = self.data[self.at : self.at + self.window]
        y = self.data[self.at + 1 : self.at + self.window + 1]
        self.at += self.window
        logits = self.logits(x)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def check_same(self, batch: Batch, model: LanguageModel) -> None:
        """Refuse to compare unless both are the same function of a batch."""
        ids = torch.from_numpy(batch.inputs)
        logits, _ = model(ids)
        difference = timing.relative_difference(logits, self.logits(ids))
        self.state = None
        if not difference <= TOLERANCE:
            raise SystemExit(f"the logits differ by {difference:.1e}")


if __name__ == "__main__":
    main()
