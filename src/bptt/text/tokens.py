"""Text to token ids and back, at the level of characters, words or byte-level BPE.

All three levels are held by one `tokenizer.json` in the format of Hugging Face
`tokenizers`. That library finds the tokens and does all of BPE; characters go through a
NumPy table built from the same file, which gives the same ids twenty times as fast.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, final

import numpy as np
import tokenizers
import tokenizers.trainers
from numpy.typing import NDArray

from bptt.errors import CheckpointError, InputError
from bptt.text.files import read_regular_file, shown
from bptt.text.pieces import pieces
from bptt.text.vocabulary import BYTES, LEVELS, SPECIAL, Level, Vocabulary

MAX_FILE_BYTES = 64 * 1024**2
MAX_VOCAB = 1_000_000  # the library reserves memory for as many before it counts

_DEFAULT_VOCAB: dict[Level, int] = {"char": 20_000, "word": 8_000, "bpe": 2_048}
_MIN_VOCAB: dict[Level, int] = {
    "char": len(SPECIAL) + 1,
    "word": len(SPECIAL) + 1,
    "bpe": len(SPECIAL) + len(BYTES),
}
_PIECES_AT_ONCE = 32  # the library spreads them over the cores
_UNKNOWN_TEXT = "\ufffd"


@final
class Tokenizer:
    """Text to ids and back; ids 0, 1, 2 are unknown, sentence start and sentence end.

    The three cannot come out of `encode` by being spelled in the text (unknown stands
    for what is not in the vocabulary, and byte-level BPE knows everything).
    """

    unknown_id = 0
    start_id = 1
    end_id = 2

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        if vocabulary.level == "char":
            self._codes = _code_of_id(vocabulary)
            self._ids = _id_of_code(self._codes)
        else:
            self._library = tokenizers.Tokenizer.from_str(vocabulary.to_json())

    @staticmethod
    def train(text: str, level: Level, vocab: int | None = None) -> "Tokenizer":
        """The tokenizer of a text: the same text always gives the same.

        Tokens are its characters or lower-case words, the most frequent first, ties in
        the order of their spelling, or the merges of byte-level BPE.

        Args:
            text: The text to learn from, not empty.
            level: "char", "word" or "bpe".
            vocab: The most tokens to have, the three special ones included. Default:
                20,000 characters, 8,000 words, 2,048 for BPE.

        Raises:
            ValueError: `level` is none of the three, or `vocab` is out of range.
            InputError: The text has no token of this level.
        """
        vocab = _checked_vocab(level, vocab)
        if level == "char":
            vocabulary = _train_characters(text, vocab)
        else:
            vocabulary = _train_library(text, level, vocab)
        if not text or len(vocabulary.tokens) == len(SPECIAL):
            raise InputError(
                f"the text of {len(text)} characters has no token of level "
                f"{level!r} to learn from; give one that is not empty"
            )
        return Tokenizer(vocabulary)

    @property
    def level(self) -> Level:
        """What a token is: "char", "word" or "bpe"."""
        return self._vocabulary.level

    @property
    def size(self) -> int:
        """The number of ids, the three special ones included."""
        return len(self._vocabulary.tokens)

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens by id, as they are spelled in `tokenizer.json`."""
        return self._vocabulary

    def encode(self, text: str) -> NDArray[np.int32]:
        """The ids of a text, in memory bounded by its size and its ids.

        Raises:
            InputError: The text has a lone surrogate, which is not a character.
        """
        encoded = self._characters if self.level == "char" else self._library_ids
        arrays = list(encoded(pieces(text)))
        return np.concatenate(arrays) if arrays else np.zeros(0, np.int32)

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """The text of some ids: start and end are left out, unknown is U+FFFD.

        Characters and BPE give back what was encoded, BPE without loss. Words come
        joined by spaces, with none where a punctuation mark does not have one.

        Raises:
            TypeError: The ids are not integers.
            ValueError: An id is not below `size`, or negative.
        """
        array = np.asarray(ids).ravel()
        if array.size == 0:
            return ""
        if array.dtype.kind not in "iu":
            raise TypeError(f"ids are {array.dtype}; they must be integers")
        if array.min() < 0 or array.max() >= self.size:
            raise ValueError(
                f"ids run from {array.min()} to {array.max()}; they must be at least 0 "
                f"and below the vocabulary's size, {self.size}"
            )
        array = array[(array != self.start_id) & (array != self.end_id)]
        match self.level:
            case "char":
                characters: bytes = self._codes[array].tobytes()
                return characters.decode("utf-32-le")
            case "word":
                return _join_words(self._spelled(array))
            case "bpe":
                # each run between unknown ids by itself
                runs = np.split(array, np.flatnonzero(array == self.unknown_id))
                known = (run[run != self.unknown_id].tolist() for run in runs)
                texts: list[str] = [self._library.decode(run) for run in known]
                return _UNKNOWN_TEXT.join(texts)

    def to_json(self) -> str:
        """The text of `tokenizer.json`."""
        return self._vocabulary.to_json()

    @staticmethod
    def from_json(text: str, name: str = "tokenizer.json") -> "Tokenizer":
        """The tokenizer in the text of a `tokenizer.json`.

        Args:
            text: What `to_json` gave.
            name: What to call the file in an error.

        Raises:
            CheckpointError: In one line, what is wrong with the file.
        """
        try:
            return Tokenizer(Vocabulary.from_json(text))
        except ValueError as error:
            raise CheckpointError(f"{name}: is no tokenizer of bptt: {error}") from None
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            # The library's own panics are not even Exceptions. None is known to pass
            # the checks above, but a file must never end the program that way.
            raise CheckpointError(
                f"{name}: the tokenizers library refuses it: {str(error)!a}"
            ) from error

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        path.write_bytes(self.to_json().encode("utf-8"))

    @staticmethod
    def load(path: Path) -> "Tokenizer":
        """Read what `save` wrote; the file may come from anyone.

        Raises:
            CheckpointError: In one line that names the file, what is wrong with it.
        """
        try:
            data = read_regular_file(path, limit_bytes=MAX_FILE_BYTES)
        except InputError as error:
            raise CheckpointError(str(error)) from None
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{shown(path)}: is no tokenizer of bptt: byte {error.start} is not "
                "valid UTF-8"
            ) from None
        return Tokenizer.from_json(text, shown(path))

    def _characters(self, parts: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        for part in parts:
            codes = np.frombuffer(part.encode("utf-32-le"), np.dtype("<u4"))
            # beyond the table lies its last entry, which is unknown
            yield np.take(self._ids, codes, mode="clip")

    def _library_ids(self, parts: Iterator[str]) -> Iterator[NDArray[np.int32]]:
        while batch := list(islice(parts, _PIECES_AT_ONCE)):
            for encoding in self._library.encode_batch_fast(batch):
                yield np.array(encoding.ids, np.int32)

    def _spelled(self, ids: NDArray[np.integer[Any]]) -> list[str]:
        tokens = self._vocabulary.tokens
        return [
            _UNKNOWN_TEXT if i == self.unknown_id else tokens[i] for i in ids.tolist()
        ]


def _checked_vocab(level: Level, vocab: int | None) -> int:
    if level not in LEVELS:
        raise ValueError(f"level is {level!r}; it must be one of {', '.join(LEVELS)}")
    if vocab is None:
        return _DEFAULT_VOCAB[level]
    if not isinstance(vocab, int) or isinstance(vocab, bool):
        raise TypeError(f"vocab is {vocab!r}; it must be an integer")
    least = _MIN_VOCAB[level]
    if not least <= vocab <= MAX_VOCAB:
        basis = "256 bytes" if level == "bpe" else f"at least one {level}"
        raise ValueError(
            f"vocab is {vocab}; level {level!r} needs {least} to {MAX_VOCAB:,}: "
            f"{len(SPECIAL)} special tokens and {basis}"
        )
    return vocab


def _train_characters(text: str, vocab: int) -> Vocabulary:
    counts = np.zeros(0x110000, np.int64)
    for piece in pieces(text):
        codes = np.frombuffer(piece.encode("utf-32-le"), np.dtype("<u4"))
        in_piece, count = np.unique(codes, return_counts=True)
        counts[in_piece] += count
    seen = np.flatnonzero(counts)
    order = np.argsort(-counts[seen], kind="stable")  # ties stay in code point order
    kept = seen[order][: vocab - len(SPECIAL)]
    return Vocabulary("char", (*SPECIAL, *map(chr, kept.tolist())))


def _train_library(text: str, level: Level, vocab: int) -> Vocabulary:
    library = tokenizers.Tokenizer.from_str(Vocabulary(level, SPECIAL).to_json())
    trainer: tokenizers.trainers.Trainer
    if level == "word":
        trainer = tokenizers.trainers.WordLevelTrainer(
            vocab_size=vocab, special_tokens=list(SPECIAL), show_progress=False
        )
    else:
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=list(SPECIAL),
            initial_alphabet=list(BYTES),
            show_progress=False,
        )
    library.train_from_iterator(pieces(text), trainer)
    # Training has also made the special tokens "added tokens", which would be looked
    # for in every text; only the model's own vocabulary and merges are kept.
    ids = library.get_vocab(with_added_tokens=False)
    merges = json.loads(library.to_str())["model"].get("merges", [])
    tokens = tuple(sorted(ids, key=ids.__getitem__))
    return Vocabulary(level, tokens, tuple((left, right) for left, right in merges))


def _code_of_id(vocabulary: Vocabulary) -> NDArray[np.uint32]:
    """The code point of each id; a special token's, never looked up but for unknown."""
    specials = _UNKNOWN_TEXT * len(SPECIAL)
    characters = specials + "".join(vocabulary.tokens[len(SPECIAL) :])
    return np.frombuffer(characters.encode("utf-32-le"), np.dtype("<u4"))


def _id_of_code(codes: NDArray[np.uint32]) -> NDArray[np.int32]:
    """The id of each code point up to one beyond the largest that is known."""
    known = codes[len(SPECIAL) :]
    table = np.full(int(known.max(initial=0)) + 2, Tokenizer.unknown_id, np.int32)
    table[known] = np.arange(len(SPECIAL), len(codes), dtype=np.int32)
    return table


def _join_words(words: list[str]) -> str:
    text = re.sub(r" ([,.;:!?'’)\]}])", r"\1", " ".join(words))
    return re.sub(r"([(\[{]) ", r"\1", text)
