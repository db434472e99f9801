import json
import subprocess
import sys
import time

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt.errors import InputError
from bptt.text import Tokenizer, python_reference
from bptt.text.pieces import pieces
from bptt.text.vocabulary import LEVELS, SPECIAL

SAMPLE = (
    "Don't stop! He said: 'the cat (a cat) sat on the mat', the end...\n"
    "\tÄpfel kosten 3.50 € -- naïve, well-known; 東京 😀\r\n\x00\x1c\u2028"
)
TRAINED = {level: Tokenizer.train(SAMPLE, level) for level in LEVELS}
LIBRARY = {
    level: tokenizers.Tokenizer.from_str(TRAINED[level].to_json()) for level in LEVELS
}
# what the sample holds, what it does not, and much white space
texts = st.text(
    st.one_of(st.sampled_from(SAMPLE + "  \n\n"), st.characters(codec="utf-8"))
)


def ids_of_library(level, text):
    return LIBRARY[level].encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("level", LEVELS)
def test_special_tokens_come_first(level):
    tokenizer = TRAINED[level]
    assert tokenizer.vocabulary.tokens[:3] == SPECIAL
    assert (tokenizer.unknown_id, tokenizer.start_id, tokenizer.end_id) == (0, 1, 2)
    assert tokenizer.level == level
    assert tokenizer.size == LIBRARY[level].get_vocab_size()


@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None)
@given(text=texts)
def test_ids_are_those_of_the_library(level, text):
    ids = TRAINED[level].encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == ids_of_library(level, text)


@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None)
@given(text=texts, length=st.integers(1, 8))
def test_pieces_have_the_ids_of_the_whole_text(level, text, length):
    parts = list(pieces(text, length, longest=10_000))
    assert "".join(parts) == text
    ids = [i for part in parts for i in ids_of_library(level, part)]
    assert ids == ids_of_library(level, text)


def test_pieces_are_cut_at_white_space_that_follows_something_else():
    assert list(pieces("ab cd  ef\u2003gh\nij", 1)) == [
        "ab",
        " cd",
        "  ef\u2003gh",
        "\nij",
    ]


def test_pieces_are_bounded_where_there_is_no_place_to_cut():
    parts = list(pieces("x" * 1000, 10, longest=64))
    assert "".join(parts) == "x" * 1000
    assert max(map(len, parts)) == 64


@settings(deadline=None)
@given(text=texts)
def test_characters_come_back_and_unknown_ones_are_marked(text):
    tokenizer = TRAINED["char"]
    expected = "".join(c if c in SAMPLE else "\ufffd" for c in text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    known = "".join(c for c in text if c in SAMPLE)
    ids = tokenizer.encode(known)
    assert tokenizer.decode(ids) == LIBRARY["char"].decode(ids.tolist()) == known


def test_characters_far_beyond_the_known_ones_are_unknown():
    tokenizer = Tokenizer.train("abc", "char")
    text = "".join(map(chr, [*range(0x3000), 0xFFFF, 0x10FFFF]))
    ids = tokenizer.encode(text)
    assert ids[97:100].tolist() == [3, 4, 5]
    assert np.count_nonzero(ids) == 3


@settings(deadline=None)
@given(text=st.text())
def test_bpe_loses_nothing(text):
    tokenizer = TRAINED["bpe"]
    ids = tokenizer.encode(text)
    assert ids.min(initial=3) >= 3
    assert tokenizer.decode(ids) == text


def test_words_are_lower_case_with_their_apostrophes_and_marks():
    tokenizer = TRAINED["word"]
    tokens = [tokenizer.vocabulary.tokens[i] for i in tokenizer.encode(SAMPLE)]
    assert tokens[:8] == ["don't", "stop", "!", "he", "said", ":", "'", "the"]
    assert {"3.50", "--", "...", "naïve", "äpfel", "東京", "😀"} <= set(tokens)
    assert tokens.index("well") + 1 == tokens.index("-")


def test_words_are_joined_for_reading():
    tokenizer = TRAINED["word"]
    ids = tokenizer.encode("He said (the cat, a mat): stop; DON'T! xyzzy ...")
    assert tokenizer.decode(ids) == "he said (the cat, a mat): stop; don't! \ufffd..."
    assert tokenizer.decode(tokenizer.encode("the cat 'sat")) == "the cat' sat"


@pytest.mark.parametrize("level", LEVELS)
def test_decode_leaves_out_start_and_end_and_marks_unknown(level):
    tokenizer = TRAINED[level]
    cat = tokenizer.encode("cat").tolist()
    assert tokenizer.decode([1, *cat, 2]) == "cat"
    assert tokenizer.decode([0]) == "\ufffd"
    assert tokenizer.decode([0, *cat, 0]).split("cat")[0].strip() == "\ufffd"
    assert tokenizer.decode([]) == tokenizer.decode([1, 2]) == ""


@pytest.mark.parametrize("level", LEVELS)
def test_decode_refuses_what_is_no_id(level):
    tokenizer = TRAINED[level]
    for ids in ([-1], [tokenizer.size]):
        with pytest.raises(
            ValueError, match=f"below the vocabulary's size, {tokenizer.size}"
        ):
            tokenizer.decode(ids)
    with pytest.raises(TypeError):
        tokenizer.decode(np.array([1.5]))


@pytest.mark.parametrize("level", LEVELS)
def test_text_cannot_spell_a_special_token(level):
    spelled = " ".join(SPECIAL) + "".join(SPECIAL) + " x"
    often = Tokenizer.train(spelled * 200, level)
    assert often.vocabulary.tokens[:3] == SPECIAL
    assert set(often.encode(spelled).tolist()).isdisjoint({0, 1, 2})
    library = tokenizers.Tokenizer.from_str(often.to_json())
    assert set(library.encode(spelled).ids).isdisjoint({0, 1, 2})
    assert often.decode(often.encode(spelled)).startswith(
        spelled if level != "word" else "< unknown token >"
    )


def test_the_most_frequent_come_first_and_ties_in_order():
    characters = Tokenizer.train("ccbbbaadd\n\n", "char")
    assert characters.vocabulary.tokens[3:] == ("b", "\n", "a", "c", "d")
    assert Tokenizer.train("ccbbbaadd", "char", vocab=5).vocabulary.tokens[3:] == (
        "b",
        "a",
    )
    words = Tokenizer.train("d d c c B b b a a", "word")
    assert words.vocabulary.tokens[3:] == ("b", "a", "c", "d")
    few = Tokenizer.train("d d c c B b b a a", "word", vocab=5)
    assert few.encode("a b c d").tolist() == [4, 3, 0, 0]


@pytest.mark.parametrize("level", LEVELS)
def test_default_sizes(level):
    text = "".join(map(chr, range(0x4E00, 0x9FA6)))  # 20,902 characters
    text += python_reference()[:100_000] + " ".join(f"w{i}" for i in range(9_000))
    size = {"char": 20_000, "word": 8_000, "bpe": 2_048}[level]
    assert Tokenizer.train(text, level).size == size


@pytest.mark.parametrize("level", LEVELS)
def test_training_is_deterministic(level):
    text = python_reference()[:60_000]
    first = Tokenizer.train(text, level).to_json()
    assert all(Tokenizer.train(text, level).to_json() == first for _ in range(3))
    program = (
        "import sys; from bptt.text import Tokenizer, python_reference;"
        f"tokenizer = Tokenizer.train(python_reference()[:60_000], {level!r});"
        "print(tokenizer.to_json(), end='')"
    )
    other = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", program], capture_output=True, check=True
    )
    assert other.stdout.decode() == first


def test_vocab_out_of_range():
    with pytest.raises(ValueError, match="vocab is 258; level 'bpe' needs 259 to"):
        Tokenizer.train("text", "bpe", vocab=258)
    assert Tokenizer.train("text", "bpe", vocab=259).size == 259
    for level in ("char", "word"):
        with pytest.raises(ValueError, match=f"vocab is 3; level '{level}' needs 4 to"):
            Tokenizer.train("text", level, vocab=3)
        assert Tokenizer.train("text", level, vocab=4).size == 4
    with pytest.raises(ValueError, match="needs 259 to 1,000,000"):
        Tokenizer.train("text", "bpe", vocab=10**15)
    with pytest.raises(TypeError):
        Tokenizer.train("text", "char", vocab=True)
    with pytest.raises((TypeError, ValueError)):
        Tokenizer.train("text", "byte")


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_to_learn_from(level):
    with pytest.raises(InputError, match="no token of level"):
        Tokenizer.train("", level)


def test_white_space_has_no_words():
    with pytest.raises(InputError, match="no token of level 'word'"):
        Tokenizer.train(" \n", "word")


@pytest.mark.parametrize("level", LEVELS)
def test_half_a_surrogate_pair_is_refused(level):
    with pytest.raises(InputError, match=r"character 2 of the text is '\\udc80'"):
        TRAINED[level].encode("ab\udc80c")
    with pytest.raises(InputError, match="character 300000 of the text"):
        TRAINED[level].encode("abc " * 75_000 + "\udc80")
    with pytest.raises(InputError, match="character 2 of the text"):
        Tokenizer.train("ab\udc80c", level)


@pytest.mark.parametrize("level", LEVELS)
def test_save_and_load(level, tmp_path):
    path = tmp_path / "tokenizer.json"
    TRAINED[level].save(path)
    loaded = Tokenizer.load(path)
    assert path.read_bytes().decode() == loaded.to_json() == TRAINED[level].to_json()
    assert loaded.level == level
    assert loaded.encode(SAMPLE).tolist() == TRAINED[level].encode(SAMPLE).tolist()
    library = tokenizers.Tokenizer.from_file(str(path))
    assert json.loads(library.to_str()) == json.loads(path.read_bytes())
    assert library.encode(SAMPLE).ids == loaded.encode(SAMPLE).tolist()


PEAK = """
import resource, sys
from bptt.text import Tokenizer
tokenizer = Tokenizer.load(__import__("pathlib").Path(sys.argv[1]))
text = sys.argv[2] * (20_000_000 // len(sys.argv[2]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids = tokenizer.encode(text)
print(len(ids), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units")
@pytest.mark.parametrize(
    ("level", "line"), [("char", "x"), ("word", "the end of it all "), ("bpe", "the")]
)
def test_memory_is_bounded_for_one_long_line(level, line, tmp_path):
    Tokenizer.train("the end of it all x", level).save(tmp_path / "t.json")
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "t.json"), line],
        capture_output=True,
        check=True,
        text=True,
    )
    count, peak_kib = map(int, result.stdout.split())
    assert count > 1_000_000
    # 20 MB of text and at most two copies of 80 MB of ids; 400 times would be 8 GB
    assert peak_kib < 500 * 1024


def test_characters_are_encoded_fast():
    text = python_reference() * 10
    tokenizer = Tokenizer.train(text, "char")
    begin = time.perf_counter()
    ids = tokenizer.encode(text)
    elapsed_s = time.perf_counter() - begin
    assert len(ids) == len(text)
    assert len(text) / elapsed_s > 5e6  # some 80e6 on a laptop, the library's 2e6
