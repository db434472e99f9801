"""What a `tokenizer.json` holds, and the check of one that may be damaged or hostile.

The file is in the format of Hugging Face `tokenizers`, so that other programs can read
it. Everything in it but the tokens and merges is fixed by the level, and a file that
differs anywhere else is refused: so the library is never handed a regular expression
or a model that this module did not write. The special tokens are plain entries of
the vocabulary, not "added tokens", which the library would look for in the text.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import tokenizers.pre_tokenizers

from bptt.strict_json import loads

Level = Literal["char", "word", "bpe"]
LEVELS: tuple[Level, ...] = get_args(Level)

# Each has a space and more than one character, so that no text can produce it: a
# character is one character, a word has no space, and ByteLevel writes a space as "Ġ".
UNKNOWN, START, END = "<unknown token>", "<sentence start>", "<sentence end>"
SPECIAL = (UNKNOWN, START, END)

# ByteLevel's stand-ins for the 256 bytes, which every BPE vocabulary must hold:
# without one of them the library would drop that byte from the text in silence.
BYTES = tuple(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))

_Json = dict[str, Any]

_ANY_CHARACTER = r"[\s\S]"
# a number, a word with its apostrophes, an ellipsis, a dash, or a single mark
_WORD = r"\d+(?:[.,]\d+)+|\w+(?:['’]\w+)*|\.\.\.|--|[^\w\s]"
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a level by id, and for BPE the merges in their order."""

    level: Level
    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> str:
        """The text of `tokenizer.json`: the same vocabulary always gives the same."""
        content = _frame(self.level)
        content["model"]["vocab"] = {token: i for i, token in enumerate(self.tokens)}
        if self.level == "bpe":
            content["model"]["merges"] = [list(pair) for pair in self.merges]
        return json.dumps(content, ensure_ascii=False, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> "Vocabulary":
        """The vocabulary in the text of a `tokenizer.json`.

        Raises:
            ValueError: In a few words, why this is not a file that `to_json` wrote.
        """
        content = loads(text)
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise ValueError("it is JSON, but it holds no tokenizer")
        model = content["model"]
        vocab, merges = model.pop("vocab", None), model.pop("merges", [])
        level = _level(content)
        tokens = _tokens(vocab)
        _check_tokens(level, tokens)
        if level != "bpe" and merges:
            raise ValueError(f"it has merges, but its level is {level!r}")
        return Vocabulary(level, tokens, _merges(merges, frozenset(tokens)))


def _frame(level: Level) -> _Json:
    """All of the file but its tokens and merges."""
    normalizer: _Json | None = None
    decoder: _Json | None = None
    model: _Json = {"type": "WordLevel", "unk_token": UNKNOWN}
    match level:
        case "char":
            split = _split(_ANY_CHARACTER, behavior="Isolated", invert=False)
            decoder = {"type": "Fuse"}
        case "word":
            normalizer = {"type": "Lowercase"}
            split = _split(_WORD, behavior="Removed", invert=True)
        case "bpe":
            split, decoder = _BYTE_LEVEL, _BYTE_LEVEL
            model = {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
            }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": split,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _split(pattern: str, *, behavior: str, invert: bool) -> _Json:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": behavior,
        "invert": invert,
    }


def _level(content: _Json) -> Level:
    """The level whose frame the content is."""

    def differences(level: Level) -> list[str]:
        frame = _frame(level)
        keys = sorted(frame.keys() | content.keys())
        return [key for key in keys if frame.get(key) != content.get(key)]

    level = min(LEVELS, key=lambda level: len(differences(level)))
    if wrong := differences(level):
        raise ValueError(
            f"its {', '.join(map(ascii, wrong[:3]))} are not as bptt writes them for "
            f"any level ({', '.join(LEVELS)})"
        )
    return level


def _tokens(vocab: object) -> tuple[str, ...]:
    """The tokens in the order of their ids, which must be 0, 1, 2, ..."""
    if not isinstance(vocab, dict):
        raise ValueError("its model has no vocabulary")
    if not all(type(i) is int for i in vocab.values()):
        raise ValueError("its vocabulary has an id that is not an integer")
    tokens = tuple(sorted(vocab, key=vocab.__getitem__))
    if [vocab[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError(f"its {len(tokens)} ids are not 0, 1, 2, ... without a gap")
    if tokens[: len(SPECIAL)] != SPECIAL:
        raise ValueError(f"its first tokens are not {', '.join(SPECIAL)}")
    return tokens


def _check_tokens(level: Level, tokens: tuple[str, ...]) -> None:
    """No token but one that the level could produce."""
    is_token: dict[Level, Callable[[str], bool]] = {
        "char": lambda token: len(token) == 1,
        "word": lambda token: token != "" and " " not in token,
        "bpe": lambda token: token != "" and set(token) <= set(BYTES),
    }
    for token in tokens[len(SPECIAL) :]:
        is_text = not any("\ud800" <= character <= "\udfff" for character in token)
        if not (is_text and is_token[level](token)):
            raise ValueError(f"{ascii(token)[:60]} is no token of level {level!r}")
    if level == "bpe" and (missing := set(BYTES) - set(tokens)):
        raise ValueError(f"its vocabulary lacks {len(missing)} of the 256 bytes")


def _merges(merges: object, tokens: frozenset[str]) -> tuple[tuple[str, str], ...]:
    if not isinstance(merges, list):
        raise ValueError("its merges are not a list")
    pairs = []
    for pair in merges:
        match pair:
            case [str(left), str(right)] if {left, right, left + right} <= tokens:
                pairs.append((left, right))
            case _:
                raise ValueError(f"{ascii(pair)[:60]} is no merge of two of its tokens")
    return tuple(pairs)
