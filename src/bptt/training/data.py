"""Texts -> tokenizer, training batches and held-out text."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bptt.language_model import Unit
from bptt.text import (
    Evaluation,
    SentenceBatches,
    Sentences,
    Stream,
    StreamBatches,
    Tokenizer,
    encode_sentences,
    encode_stream,
    evaluation_sentences,
    evaluation_streams,
    fit_batch,
    hold_out_sentences,
    hold_out_text,
    read_text,
    split_sentences,
)
from bptt.training.config import Options, TrainingConfig

QUICK_TOKENS = 16_384  # of the held-out text, measured on the way
EVALUATION_WINDOW = 256


@dataclass(frozen=True)
class Corpus:
    """A text in numbers: the part to train on and the part held out."""

    tokenizer: Tokenizer
    train: Stream | Sentences
    held_out: Stream | Sentences

    @property
    def digest(self) -> str:
        """SHA-256 of ids and tokens, so that a resume meets the same texts."""
        hashed = hashlib.sha256(self.tokenizer.to_json().encode())
        for part in (self.train, self.held_out):
            hashed.update(hashlib.sha256(part.ids.tobytes()).digest())
        return hashed.hexdigest()

    @property
    def validation(self) -> Evaluation:
        """All of the held-out text."""
        return evaluation_batches(self.held_out)

    @property
    def quick_validation(self) -> Evaluation:
        """Its beginning, the same at every call."""
        held_out = self.held_out
        if isinstance(held_out, Stream):
            return evaluation_batches(Stream(held_out.ids[: QUICK_TOKENS + 1]))
        last = int(np.searchsorted(held_out.offsets, QUICK_TOKENS))
        offsets = held_out.offsets[: max(2, last)]
        return evaluation_batches(Sentences(held_out.ids[: offsets[-1]], offsets))


def load_corpus(
    options: Options, texts: Sequence[Path], valid: Sequence[Path]
) -> Corpus:
    """Read the texts, hold the last tenth out unless `valid` is given, number them.

    The tokenizer learns from the training part alone.

    Raises:
        InputError: a text cannot be used, or is too short.
        ValueError: the vocabulary asked for is too small.
    """
    text = read_text(texts)
    valid_text = read_text(valid) if valid else None
    if options.unit == "sentence":
        sentences = split_sentences(text, options.one_a_line)
        if valid_text is None:
            sentences, held_out = hold_out_sentences(sentences)
        else:
            held_out = split_sentences(valid_text, options.one_a_line)
        tokenizer = Tokenizer.train("\n".join(sentences), options.level, options.vocab)
        return Corpus(
            tokenizer,
            encode_sentences(sentences, tokenizer),
            encode_sentences(held_out, tokenizer),
        )
    if valid_text is None:
        text, valid_text = hold_out_text(text)
    tokenizer = Tokenizer.train(text, options.level, options.vocab)
    return Corpus(
        tokenizer, encode_stream(text, tokenizer), encode_stream(valid_text, tokenizer)
    )


def training_batches(
    corpus: Corpus, config: TrainingConfig
) -> StreamBatches | SentenceBatches:
    """The batches of a run; fewer streams than asked for where the text is short.

    Raises:
        InputError: the text is shorter than one window.
    """
    if isinstance(corpus.train, Sentences):
        return SentenceBatches(corpus.train, config.batch, seed=config.seed)
    assert config.window is not None
    return StreamBatches(
        corpus.train.ids,
        fit_batch(corpus.train.tokens, config.batch, config.window),
        config.window,
        context=config.context(config.first_k2),
        seed=config.seed,
    )


def encode_for(
    text: str, tokenizer: Tokenizer, unit: Unit, *, one_a_line: bool
) -> Stream | Sentences:
    """A text as a trained model of this unit reads it.

    Raises:
        InputError: there is nothing to predict.
    """
    if unit == "sentence":
        return encode_sentences(split_sentences(text, one_a_line), tokenizer)
    return encode_stream(text, tokenizer)


def evaluation_batches(held_out: Stream | Sentences) -> Evaluation:
    """Every token counted once, in an order that is quick to evaluate."""
    if isinstance(held_out, Sentences):
        return evaluation_sentences(held_out, window=EVALUATION_WINDOW)
    return evaluation_streams(held_out.ids, window=EVALUATION_WINDOW)
