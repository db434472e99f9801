import ast
import os
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencex
from hypothesis import given, settings
from hypothesis import strategies as st

import bptt.text
from bptt.errors import InputError
from bptt.text import (
    Sentences,
    Stream,
    Tokenizer,
    encode_sentences,
    encode_stream,
    hold_out_sentences,
    hold_out_text,
    python_reference,
    read_text,
    split_sentences,
)


def written(folder, *contents):
    paths = [folder / f"{i}.txt" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def test_files_are_joined_with_a_newline_where_one_lacks(tmp_path):
    paths = written(tmp_path, b"one", b"two\n", "dreï".encode())
    assert read_text(paths) == "one\ntwo\ndreï"
    assert read_text(paths[:1]) == "one"


def test_byte_order_mark_and_line_ends(tmp_path):
    mark = b"\xef\xbb\xbf"
    paths = written(tmp_path, mark + b"a\r\nb\rc\r\n", mark + b"d\xef\xbb\xbfe")
    assert read_text(paths) == "a\nb\rc\nd\ufeffe"


def test_nul_is_a_character_like_any_other(tmp_path):
    assert read_text(written(tmp_path, b"a\0b")) == "a\0b"


def test_a_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(written(tmp_path, b"text")[0])
    assert read_text([tmp_path / "link"]) == "text"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty; name a file with text"),
        (b"\xef\xbb\xbf", "is empty"),
        (b" \r\n\t\n", "has nothing but white space"),
        (b"abc\xff\xff", r"byte 3 is not valid UTF-8 .* convert the file to UTF-8"),
        (b"\xef\xbb\xbfab\xc3", "byte 5 is not valid UTF-8"),
        (b"a\xed\xa0\x80", "byte 1 is not valid UTF-8"),
        ("text".encode("utf-16"), "is UTF-16; convert it to UTF-8"),
        (b"\xfe\xff\0t", "is UTF-16; convert it to UTF-8"),
        ("text".encode("utf-32"), "is UTF-32; convert it to UTF-8"),
        (b"\0\0\xfe\xff\0\0\0t", "is UTF-32; convert it to UTF-8"),
    ],
)
def test_unsuitable_contents(content, reason, tmp_path):
    good, bad = written(tmp_path, b"good", content)
    with pytest.raises(InputError, match=reason) as caught:
        read_text([good, bad])
    assert str(caught.value).startswith(f"{bad}: ")
    assert "\n" not in str(caught.value)


def unsuitable_files(folder):
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "file").write_text("text")
    return {
        folder: "is a folder; name the files in it",
        folder / "nothing": "no such file",
        folder / "two\nlines": "no such file",
        folder / "dangling": "no such file",
        folder / "pipe": "not a regular file; save the text",
        folder / "loop": "check the name",
        folder / "file" / "below": "check the name",
        folder / ("x" * 5000): "check the name",
        folder / "nul\0": "is no file name",
        Path("/dev/zero"): "not a regular file",
        Path("/dev/null"): "not a regular file",
    }


def test_unsuitable_files(tmp_path):
    for path, reason in unsuitable_files(tmp_path).items():
        with pytest.raises(InputError, match=reason) as caught:
            read_text([path])
        message = str(caught.value)
        name = str(path) if str(path).isprintable() else ascii(str(path))
        assert message.startswith(f"{name}: ")
        assert "\n" not in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    (path,) = written(tmp_path, b"text")
    path.chmod(0)
    with pytest.raises(InputError, match=r"0\.txt: Permission denied; check"):
        read_text([path])


def test_unreadable_file_for_root_too(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    (path,) = written(tmp_path, b"text")
    monkeypatch.setattr("pathlib.Path.open", refused)
    with pytest.raises(InputError, match=r"0\.txt: Permission denied; check"):
        read_text([path])


def test_no_file_gives_the_reference_of_python():
    text = read_text()
    topics = pydoc_data.topics.topics
    assert text == python_reference() == "\n".join(topics[k] for k in sorted(topics))
    assert 300_000 < len(text) < 1_000_000


def test_python_without_its_reference(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match=r"no pydoc_data\.topics.*name a text file"):
        read_text()


def test_sentences_are_found():
    text = "Dr. Smith went to\nWashington. He paid  3.5 dollars.\n \nA title\n\nReally?"
    assert split_sentences(text, one_a_line=False) == [
        "Dr. Smith went to Washington.",
        "He paid 3.5 dollars.",
        "A title",
        "Really?",
    ]


def test_sentences_one_a_line():
    text = "  One. Two.\n\n \t\nthree\x0b\u2028 four\n"
    assert split_sentences(text, one_a_line=True) == [
        "One. Two.",
        "three\x0b\u2028 four",
    ]


@pytest.mark.parametrize("one_a_line", [False, True])
def test_no_sentences(one_a_line):
    assert (
        split_sentences("", one_a_line) == split_sentences(" \n\n ", one_a_line) == []
    )


@settings(deadline=None)
@given(text=st.text(st.sampled_from('ab.!?"\n (A')) | st.text())
def test_no_word_is_lost_between_sentences(text):
    for one_a_line in (False, True):
        sentences = split_sentences(text, one_a_line)
        assert "".join("".join(sentences).split()) == "".join(text.split())
        assert all(s == s.strip() != "" for s in sentences)
        assert one_a_line or all("\n" not in s for s in sentences)


def test_long_paragraph_gives_the_sentences_of_the_whole():
    paragraph = " ".join(
        f"Sentence {i}, said Mr. Smith, is “here”." for i in range(6_000)
    )
    found = split_sentences(paragraph, one_a_line=False)
    assert len(paragraph) > 200_000
    assert found == [s.strip() for s in sentencex.segment("en", paragraph)]
    assert len(found) == 6_000


@pytest.mark.parametrize("unit", ["“Hello there. ", "“", "word ", "x"])
def test_hostile_paragraph_is_searched_in_bounded_parts(unit, monkeypatch):
    # the sentence finder takes quadratic time for the first two
    longest = 0

    def segment(language, text):
        nonlocal longest
        longest = max(longest, len(text))
        return find(language, text)

    find = sentencex.segment
    monkeypatch.setattr("sentencex.segment", segment)
    text = unit * (60_000 // len(unit))
    sentences = split_sentences(text, one_a_line=False)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert 8_000 < longest < 25_000


def test_hold_out_text_is_cut_at_nine_tenths():
    text = "".join(chr(0x4E00 + i) for i in range(1009))
    train, valid = hold_out_text(text)
    assert train + valid == text
    assert len(train) == int(1009 * 0.9) == 908
    assert len(hold_out_text(text, share=0.25)[1]) == 253


@pytest.mark.parametrize("text", ["", "a", "abcdefghij", "x" * 100 + " " * 20])
def test_text_too_short_to_hold_out(text):
    with pytest.raises(InputError, match="give --valid or more text"):
        hold_out_text(text)


def test_shortest_text_to_hold_out():
    assert hold_out_text("abcdefghijkl") == ("abcdefghij", "kl")


def test_hold_out_sentences():
    sentences = [str(i) for i in range(25)]
    assert hold_out_sentences(sentences) == (sentences[:22], sentences[22:])
    assert hold_out_sentences(["a", "b"]) == (["a"], ["b"])
    for share in (0.99, 1e-20):
        assert hold_out_sentences(["a", "b"], share) == (["a"], ["b"])
    for few in ([], ["a"]):
        with pytest.raises(InputError, match=f"has {len(few)} .*give --valid"):
            hold_out_sentences(few)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_share_out_of_range(share):
    with pytest.raises(ValueError, match="share is"):
        hold_out_text("text " * 100, share)
    with pytest.raises(ValueError, match="share is"):
        hold_out_sentences(["a", "b"], share)


def test_stream():
    tokenizer = Tokenizer.train("abcba", "char")
    stream = encode_stream("abcx", tokenizer)
    assert tokenizer.decode(stream.ids) == "abc\ufffd"
    assert (len(stream), stream.tokens) == (4, 3)
    for text in ("", "a"):
        with pytest.raises(InputError, match="at least 2"):
            encode_stream(text, tokenizer)
    with pytest.raises((TypeError, ValueError), match="int32"):
        Stream(np.arange(3))


def test_sentences_are_encoded_between_start_and_end():
    tokenizer = Tokenizer.train("the cat sat", "word")
    sentences = encode_sentences(["The cat", " ", "sat sat the dog"], tokenizer)
    cat, sat, the = (tokenizer.encode(w).item() for w in ("cat", "sat", "the"))
    assert sentences.ids.tolist() == [1, the, cat, 2, 1, sat, sat, the, 0, 2]
    assert sentences.ids.dtype == np.int32
    assert sentences.offsets.tolist() == [0, 4, 10]
    assert (len(sentences), sentences.tokens) == (2, 8)
    assert [s.tolist() for s in sentences] == [
        [1, the, cat, 2],
        [1, sat, sat, the, 0, 2],
    ]
    with pytest.raises(IndexError):
        sentences[-1]
    with pytest.raises(InputError, match="none of the 2 sentence"):
        encode_sentences(["", " "], tokenizer)


@pytest.mark.parametrize("offsets", [[], [0], [0, 3], [1, 4], [0, 3, 4], [0, 5, 4]])
def test_offsets_that_do_not_fit(offsets):
    with pytest.raises(ValueError, match="offsets run over"):
        Sentences(np.zeros(4, np.int32), np.array(offsets, np.int64))


def test_pytorch_is_not_needed():
    for path in Path(bptt.text.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] != "torch"
                assert not name.startswith("bptt") or name.startswith(
                    ("bptt.errors", "bptt.strict_json", "bptt.text")
                )
    program = "import sys, bptt.text; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
