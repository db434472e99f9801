"""Text files to one text, to its sentences, and to token ids ready for batching.

The two units of a corpus: a `Stream` is one unbroken run of tokens, each predicted from
all before it; in `Sentences` each sentence stands alone, between a start and an end
token, as in Britz, "Recurrent Neural Networks Tutorial", 2015.
"""

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module  # noqa: TID251 - of a constant
from pathlib import Path
from typing import Any

import numpy as np
import sentencex
from numpy.typing import NDArray

from bptt.errors import InputError
from bptt.text.files import read_regular_file, shown
from bptt.text.pieces import pieces
from bptt.text.tokens import Tokenizer

# The 32-bit marks first: that of UTF-32-LE begins with that of UTF-16-LE.
_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_BLANK_LINES = re.compile(r"\n\s*\n")
# In characters. The sentence finder takes quadratic time where quotes never close, and
# nothing so long is a sentence.
_LONGEST_SENTENCE = 8 * 1024


@dataclass(frozen=True, eq=False)
class Stream:
    """A text as one run of token ids, each predicted from those before it."""

    ids: NDArray[np.int32]

    def __post_init__(self) -> None:
        _check_ids(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """The number of predictions: every token but the first."""
        return max(0, len(self.ids) - 1)


@dataclass(frozen=True, eq=False)
class Sentences:
    """Sentences of token ids, end to end, each with its start and end token.

    Sentence `i` is `ids[offsets[i]:offsets[i + 1]]`; there is one offset more than
    sentences, from 0 to `len(ids)`, and each has at least two ids.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        _check_ids(self.ids)
        ends = self.offsets[[0, -1]].tolist() if self.offsets.size else []
        if ends != [0, len(self.ids)] or np.any(np.diff(self.offsets) < 2):
            raise ValueError(
                f"offsets run over {ends} with {len(self.ids)} ids; they must run from "
                "0 to the number of ids in steps of at least 2"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}; there are {len(self)} sentences")
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @property
    def tokens(self) -> int:
        """The number of predictions: in each sentence every token but its start."""
        return len(self.ids) - len(self)


def read_text(paths: Sequence[Path] = ()) -> str:
    """The files' text, one after the other; `python_reference()` if there are none.

    Files are UTF-8, with or without a byte order mark; the ends of lines become a
    newline, and a file that does not end in one is given one before the next file.

    Raises:
        InputError: In one line that names the file, why it cannot be used.
    """
    if not paths:
        return python_reference()
    texts = [_read_one(path) for path in paths]
    for i, text in enumerate(texts[:-1]):
        if not text.endswith("\n"):
            texts[i] = text + "\n"
    return "".join(texts)


def python_reference() -> str:
    """The English reference that ships inside Python: some 460,000 characters.

    It is the text behind `help("topics")`, so it differs a little between versions
    of Python.

    Raises:
        InputError: This Python was installed without it.
    """
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError:
        raise InputError(
            "this Python has no pydoc_data.topics, the text used when none is named; "
            "name a text file"
        ) from None
    return "\n".join(topics[name] for name in sorted(topics))


def split_sentences(text: str, one_a_line: bool) -> list[str]:
    """The sentences of an English text, in order, blank ones left out.

    Args:
        text: Any text. A blank line always ends a sentence.
        one_a_line: Whether each line already is a sentence. Otherwise `sentencex`
            finds them, and each run of white space inside one becomes a space.
    """
    if one_a_line:
        return [line.strip() for line in text.split("\n") if line.strip()]
    found = (" ".join(sentence.split()) for sentence in _find_sentences(text))
    return [sentence for sentence in found if sentence]


def hold_out_text(text: str, share: float = 0.1) -> tuple[str, str]:
    """A text to learn from and, from its end, one to validate on.

    Args:
        text: The whole text; it is cut at `int(len(text) * (1 - share))`.
        share: The part to validate on, between 0 and 1.

    Raises:
        InputError: One part would be blank or a single character.
    """
    cut = int(len(text) * (1 - _checked_share(share)))
    train, valid = text[:cut], text[cut:]
    if min(len(train), len(valid)) < 2 or not (train.strip() and valid.strip()):
        raise InputError(
            f"the text of {len(text)} characters is too short to hold out its last "
            f"{len(valid)} for validation; give --valid or more text"
        )
    return train, valid


def hold_out_sentences(
    sentences: Sequence[str], share: float = 0.1
) -> tuple[list[str], list[str]]:
    """Sentences to learn from and, from the end, those to validate on.

    Args:
        sentences: All of them, at least two.
        share: The part to validate on, between 0 and 1; each part gets at least one.

    Raises:
        InputError: There are fewer than two sentences.
    """
    n = len(sentences)
    cut = int(n * (1 - _checked_share(share)))
    if n < 2:
        raise InputError(
            f"the text has {n} sentence(s), too few to hold one out for validation; "
            "give --valid or more text"
        )
    cut = min(max(cut, 1), n - 1)
    return list(sentences[:cut]), list(sentences[cut:])


def encode_stream(text: str, tokenizer: Tokenizer) -> Stream:
    """The text as one run of ids.

    Raises:
        InputError: It has fewer than two tokens, so there is nothing to predict.
    """
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise InputError(
            f"the text of {len(text)} characters makes {len(ids)} token(s); at least "
            "2 are needed to predict one; give more text"
        )
    return Stream(ids)


def encode_sentences(sentences: Sequence[str], tokenizer: Tokenizer) -> Sentences:
    """Each sentence's ids between a start and an end token, empty ones left out.

    Raises:
        InputError: No sentence has a token.
    """
    start = np.array([tokenizer.start_id], np.int32)
    end = np.array([tokenizer.end_id], np.int32)
    parts: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    for sentence in sentences:
        ids = tokenizer.encode(sentence)
        if len(ids):
            parts += (start, ids, end)
            lengths.append(len(ids) + 2)
    if not parts:
        raise InputError(
            f"none of the {len(sentences)} sentence(s) has a token of level "
            f"{tokenizer.level!r}; give more text"
        )
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    return Sentences(np.concatenate(parts), offsets)


def _read_one(path: Path) -> str:
    data = read_regular_file(path)
    for mark, encoding in _OTHER_ENCODINGS.items():
        if data.startswith(mark):
            raise InputError(f"{shown(path)}: is {encoding}; convert it to UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown(path)}: byte {error.start} is not valid UTF-8 ({error.reason}); "
            "convert the file to UTF-8"
        ) from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if not text.strip():
        kind = "has nothing but white space" if text else "is empty"
        raise InputError(f"{shown(path)}: {kind}; name a file with text")
    return text


def _find_sentences(text: str) -> Iterator[str]:
    """What `sentencex` finds, given no more at once than it handles in linear time."""
    for paragraph in _BLANK_LINES.split(text):
        # The last sentence of a piece may go on in the next.
        open_sentence = ""
        for piece in pieces(paragraph, _LONGEST_SENTENCE, 2 * _LONGEST_SENTENCE):
            *whole, open_sentence = sentencex.segment("en", open_sentence + piece)
            yield from whole
            if len(open_sentence) > _LONGEST_SENTENCE:
                yield open_sentence
                open_sentence = ""
        yield open_sentence


def _checked_share(share: float) -> float:
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; it must lie between 0 and 1")
    return share


def _check_ids(ids: NDArray[Any]) -> None:
    if ids.ndim != 1 or ids.dtype != np.int32:
        raise ValueError(
            f"ids are {ids.dtype} with {ids.ndim} axes; they must be int32 with one"
        )
