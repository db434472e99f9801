"""Texts that nobody meant: a result, or a refusal in a line."""

import os
import time
from pathlib import Path

import pytest

PROSE = "the cat sat on the mat. a dog ran to the hut.\n" * 8
B = PROSE.encode()

CONTENTS = {
    "empty": b"",
    "a byte": b"a",
    "two bytes": b"ab",
    "a newline": b"\n",
    "newlines": b"\n" * 5000,
    "spaces": b" " * 5000,
    "tabs and returns": b"\t\r\n" * 500,
    "one character": b"a" * 5000,
    "one word": b"word " * 900,
    "one word a line": b"word\n" * 900,
    "lone returns": B.replace(b"\n", b"\r"),
    "returns": B.replace(b"\n", b"\r\n"),
    "no newline": B.replace(b"\n", b" "),
    "nul": B + b"\0" + B,
    "nuls": b"\0" * 5000,
    "nuls between": b"\0".join(bytes([c]) for c in B),
    "8-bit mark": b"\xef\xbb\xbf" + B,
    "two 8-bit marks": b"\xef\xbb\xbf" * 2 + B,
    "8-bit mark alone": b"\xef\xbb\xbf",
    "8-bit mark inside": B + b"\xef\xbb\xbf" + B,
    "half an 8-bit mark": b"\xef\xbb" + B,
    "16-bit mark, little": PROSE.encode("utf-16"),
    "16-bit mark, big": b"\xfe\xff" + PROSE.encode("utf-16-be"),
    "16-bit mark alone": b"\xff\xfe",
    "16 bits without a mark": PROSE.encode("utf-16-le"),
    "32-bit mark, little": PROSE.encode("utf-32"),
    "32-bit mark, big": b"\0\0\xfe\xff" + PROSE.encode("utf-32-be"),
    "32-bit mark alone": b"\0\0\xfe\xff",
    "latin-1": ("caf\xe9 " * 500).encode("latin-1"),
    "shift-jis": ("\u65e5\u672c " * 500).encode("shift-jis"),
    "invalid at the start": b"\xff" + B,
    "invalid at the end": B + b"\xc3",
    "continuation alone": B + b"\x80" + B,
    "overlong": B + b"\xc0\xaf" + B,
    "surrogate": B + b"\xed\xa0\x80" + B,
    "beyond unicode": B + b"\xf4\x90\x80\x80" + B,
    "five bytes": B + b"\xf8\x88\x80\x80\x80" + B,
    "random bytes": bytes((i * 7919 + i * i) % 256 for i in range(5000)),
    "right to left": (
        "\u0634\u0644\u0648\u0645 \u05e9\u05dc\u05d5\u05dd.\n" * 300
    ).encode(),
    "overrides": ("\u202eabc\u202c \u2066x\u2069\u200f.\n" * 300).encode(),
    "control characters": bytes(range(1, 32)) * 100 + B,
    "escapes": b"\x1b[2J\x1b]0;x\x07\x9b".replace(b"\x9b", b"") * 200 + B,
    "c1 controls": ("".join(map(chr, range(128, 160))) * 50 + PROSE).encode(),
    "zero width": ("a\u200b\u200d\ufeffb " * 500).encode(),
    "line separators": ("a b\u2028c d\u2029e\x85f\x0bg\x0ch " * 300).encode(),
    "combining": ("e" + "\u0301" * 2000 + PROSE).encode(),
    "emoji": ("\U0001f468\u200d\U0001f469\u200d\U0001f467 " * 300).encode(),
    "private and unassigned": ("\ue000\U0010ffff\ufffe\uffff " * 400).encode(),
    "every character once": "".join(map(chr, range(32, 5000))).encode(),
    "markup": b"[bold]x[/bold] [/] [link=a]" * 200,
    "special tokens": b"<unknown token><sentence start><sentence end>" * 100,
    "formats": b"%s%n{0}{x!r}$(id)`id`" * 200,
    "open quotes": b'"(' * 3000,
    "a long line": b"the cat sat " * 20_000,
    "a long word": b"cat" * 70_000,
}


def run_in_time(command, *words):
    started_s = time.monotonic()
    ended = command(*words)
    took_s = time.monotonic() - started_s
    if ended.code:
        assert ended.code == 2, ended.err
        assert ended.message.startswith("bptt: ")
        assert ended.message.isprintable()
        assert took_s < 5
    return ended


@pytest.mark.parametrize("name", CONTENTS)
def test_whatever_a_text_holds(train, bptt, tmp_path, name):
    path = tmp_path / "text"
    path.write_bytes(CONTENTS[name])
    kinds = (("char", "stream"), ("word", "sentence"), ("bpe", "stream"))
    kind = kinds[list(CONTENTS).index(name) % 3]
    for level, unit in {kind, kinds[0]} if len(CONTENTS[name]) < 9000 else {kind}:
        out = tmp_path / f"{level}-{unit}"
        words = ["--level", level, "--unit", unit, "--out", out]
        if level == "bpe":
            words += ["--vocab", 300]
        ended = run_in_time(lambda *w: train(*w, texts=[path], steps=1), *words)
        assert ended.code in (0, 2)
        assert not any(c in ended.err for c in "\x1b\x07\u202e\u2066\x9b"), name
        assert out.exists() == (ended.code == 0)
        if ended.code == 0:
            assert run_in_time(bptt, "generate", out, "--length", 5).code == 0


def places(folder):
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "nowhere-link").symlink_to(folder / "nowhere")
    (folder / "zero").symlink_to("/dev/zero")
    return [
        folder / "missing",
        folder,
        folder / "pipe",
        folder / "loop",
        folder / "nowhere-link",
        folder / "zero",
        Path("/dev/zero"),
        Path("/dev/null"),
        folder / "book.txt" / "below",
        folder / ("x" * 300),
        folder / "esc\x1b[2J\n",
    ]


def test_whatever_a_text_is(train, bptt, book, tmp_path):
    for path in places(tmp_path):
        for texts, valid in (([path], []), ([book, path], []), ([book], [path])):
            more = ["--valid", *valid] if valid else []
            ended = run_in_time(lambda *w, t=texts: train(*w, texts=t), *more)
            assert ended.code == 2, path
            assert not (tmp_path / "run").exists()
