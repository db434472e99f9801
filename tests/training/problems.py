"""Small texts, and runs on them that take a fraction of a second."""

import random
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bptt.language_model import LanguageModel
from bptt.text import (
    Tokenizer,
    encode_sentences,
    encode_stream,
    hold_out_sentences,
    hold_out_text,
)
from bptt.training import (
    Choice,
    Corpus,
    Measurement,
    Options,
    RunFolder,
    Trainer,
    resolve,
)

TINY = {"hidden": 6, "window": 8, "batch": 2}
_SUBJECTS = ("the cat", "a dog", "the hen", "one man")
_VERBS = ("sat on", "ran to", "saw")
_PLACES = ("the mat", "a log", "the hut", "one pen")


@cache
def lines(n: int = 60, seed: int = 0) -> tuple[str, ...]:
    """Sentences of a small grammar."""
    choose = random.Random(seed).choice
    return tuple(
        f"{choose(_SUBJECTS)} {choose(_VERBS)} {choose(_PLACES)}." for _ in range(n)
    )


def text(n: int = 60, seed: int = 0) -> str:
    return "\n".join(lines(n, seed)) + "\n"


def corpus(options: Options, n: int = 60, seed: int = 0) -> Corpus:
    """The text above as `load_corpus` would make it of a file."""
    if options.unit == "sentence":
        train, valid = hold_out_sentences(lines(n, seed))
        tokenizer = Tokenizer.train("\n".join(train), options.level, options.vocab)
        return Corpus(
            tokenizer,
            encode_sentences(train, tokenizer),
            encode_sentences(valid, tokenizer),
        )
    train_text, valid_text = hold_out_text(text(n, seed))
    tokenizer = Tokenizer.train(train_text, options.level, options.vocab)
    return Corpus(
        tokenizer,
        encode_stream(train_text, tokenizer),
        encode_stream(valid_text, tokenizer),
    )


class Watcher:
    """A reporter that calls back; it is told the trainer that it watches."""

    def __init__(self) -> None:
        self.trainer: Trainer = None  # type: ignore[assignment]
        self.after_step: Any = lambda trainer: None
        self.after_evaluation: Any = lambda trainer: None
        self.choices: list[tuple[int, int, Choice]] = []
        self.evaluations: list[tuple[int, float, Measurement]] = []

    def on_step(self, share: float, loss: float, tokens_per_s: float) -> None:
        self.after_step(self.trainer)

    def on_evaluation(self, step: int, loss: float, measured: Measurement) -> None:
        self.evaluations.append((step, loss, measured))
        self.after_evaluation(self.trainer)

    def on_choice(self, step: int, before: int, choice: Choice) -> None:
        self.choices.append((step, before, choice))


def trainer(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    stop_at: tuple[int, ...] = (),
    data: Corpus | None = None,
    **given: Any,
) -> tuple[Trainer, Watcher]:
    """A run in `folder`, which is stopped after the steps `stop_at`."""
    options = Options(**{**TINY, **given})
    data = data or corpus(options)
    model_config, config = resolve(options, data.tokenizer.size)
    run_folder = RunFolder(folder)
    run_folder.create()
    torch.manual_seed(config.seed)
    model = LanguageModel(model_config, data.tokenizer).to(dtype)
    watcher = Watcher()
    watcher.trainer = Trainer(
        model,
        config,
        data,
        run_folder,
        watcher,
        lambda: watcher.trainer.progress.step in stop_at,
    )
    return watcher.trainer, watcher


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Copies, by name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
