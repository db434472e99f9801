import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt.errors import CheckpointError
from bptt.text import Tokenizer
from bptt.text.vocabulary import LEVELS, SPECIAL

TRAINED = {
    level: Tokenizer.train("the cat sat on the mat; the äpfel\x1c", level)
    for level in LEVELS
}


def damaged(level, change):
    content = json.loads(TRAINED[level].to_json())
    change(content, content["model"], content["model"]["vocab"])
    return json.dumps(content)


DAMAGED = {
    "nothing": ("", "not JSON"),
    "half a file": (TRAINED["bpe"].to_json()[:500], "not JSON"),
    "a list": ("[]", "holds no tokenizer"),
    "no model": ("{}", "holds no tokenizer"),
    "deep": ("[" * 100_000, "nested too deeply|not JSON"),
    "deep merge": (
        damaged("bpe", lambda c, m, v: m["merges"].append("DEEP")).replace(
            '"DEEP"', "[" * 900 + "]" * 900
        ),
        "is no merge|nested|refuses",
    ),
    "long number": (f'{{"model": {"9" * 10_000}}}', "a number of 10000 digits"),
    "another model": (
        damaged("char", lambda c, m, v: m.update(type="Unigram")),
        "'model' are not as bptt writes them",
    ),
    "hostile pattern": (
        damaged(
            "word",
            lambda c, m, v: c["pre_tokenizer"].update(pattern={"Regex": "(a*)*b"}),
        ),
        "'pre_tokenizer' are not",
    ),
    "added token": (
        damaged("bpe", lambda c, m, v: c["added_tokens"].append({"id": 0})),
        "'added_tokens' are not",
    ),
    "more": (damaged("bpe", lambda c, m, v: c.update(more=1)), "'more' are not"),
    "no vocabulary": (damaged("bpe", lambda c, m, v: m.pop("vocab")), "no vocabulary"),
    "no end": (
        damaged("char", lambda c, m, v: v.pop(SPECIAL[2])),
        "not 0, 1, 2, ... without a gap",
    ),
    "no special": (
        damaged("word", lambda c, m, v: v.update(x=v.pop(SPECIAL[0]))),
        "first tokens are not <unknown token>, <sentence start>, <sentence end>",
    ),
    "gap": (damaged("word", lambda c, m, v: v.update(x=10**6)), "without a gap"),
    "twice": (damaged("word", lambda c, m, v: v.update(x=3)), "without a gap"),
    "huge": (damaged("word", lambda c, m, v: v.update(x=10**40)), "without a gap"),
    "negative": (damaged("word", lambda c, m, v: v.update(x=-1)), "without a gap"),
    "real": (damaged("word", lambda c, m, v: v.update(x=3.0)), "not an integer"),
    "true": (damaged("word", lambda c, m, v: v.update(the=True)), "not an integer"),
    "two characters": (
        damaged("char", lambda c, m, v: v.update(xy=len(v))),
        "'xy' is no token of level 'char'",
    ),
    "two words": (
        damaged("word", lambda c, m, v: v.update({"x y": len(v)})),
        "'x y' is no token",
    ),
    "surrogate": (
        damaged("char", lambda c, m, v: v.update({"\ud800": len(v)})),
        "half a surrogate pair",
    ),
    "merges of words": (
        damaged("word", lambda c, m, v: m.update(merges=[["a", "b"]])),
        "it has merges",
    ),
    "no bytes": (
        damaged("bpe", lambda c, m, v: v.update({"aaa": v.pop("a")})),
        "lacks 1 of the 256 bytes",
    ),
    "unknown merge": (
        damaged("bpe", lambda c, m, v: m["merges"].append(["a", "zzzz"])),
        "is no merge of two of its tokens",
    ),
    "merge of three": (
        damaged("bpe", lambda c, m, v: m["merges"].append(["a", "b", "c"])),
        "is no merge",
    ),
    "merges by name": (damaged("bpe", lambda c, m, v: m.update(merges={})), "a list"),
}


@pytest.mark.parametrize(("text", "reason"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_file(text, reason, tmp_path, capfd):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(text.encode())
    with pytest.raises(CheckpointError, match=reason) as caught:
        Tokenizer.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 250
    assert capfd.readouterr().err == ""  # no panic of the library either


@settings(deadline=None, max_examples=int(os.environ.get("BPTT_SOAK_EXAMPLES", "200")))
@given(
    level=st.sampled_from(LEVELS),
    place=st.integers(0, 10_000),
    new=st.binary(min_size=0, max_size=3),
)
def test_a_damaged_byte_is_read_or_refused(level, place, new):
    data = TRAINED[level].to_json().encode()
    place %= len(data)
    text = (data[:place] + new + data[place + 1 :]).decode("utf-8", "replace")
    try:
        tokenizer = Tokenizer.from_json(text)
    except CheckpointError:
        return
    assert tokenizer.encode("the cat").min() >= 0


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file"):
        Tokenizer.load(path)
    with pytest.raises(CheckpointError, match="is a folder"):
        Tokenizer.load(tmp_path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointError, match="byte 7 is not valid UTF-8"):
        Tokenizer.load(path)
    with path.open("wb") as file:
        file.truncate(64 * 1024**2 + 1)
    with pytest.raises(CheckpointError, match="larger than 67,108,864 bytes"):
        Tokenizer.load(path)
    os.mkfifo(tmp_path / "pipe")
    for unsuitable in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="not a regular file"):
            Tokenizer.load(unsuitable)


def test_a_panic_of_the_library_is_an_error_of_the_file(monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(_):
        raise PanicException("called `Option::unwrap()`\non a `None` value")

    monkeypatch.setattr("tokenizers.Tokenizer.from_str", panic)
    with pytest.raises(CheckpointError, match=r"t\.json: the tokenizers library") as e:
        Tokenizer.from_json(TRAINED["bpe"].to_json(), "t.json")
    assert "\n" not in str(e.value)
