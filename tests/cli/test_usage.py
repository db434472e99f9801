"""What is refused: in a line on stderr, with exit code 2, and nothing left behind."""

import json

import pytest

from training.problems import text


def refused(ended, tmp_path, *, leaves=("book.txt",)):
    """The message of a command that was refused and made nothing."""
    assert ended.code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(leaves)
    return ended.message


# texts

TEXTS = {
    "missing.txt": (None, "missing.txt: no such file; check the name"),
    "empty.txt": (b"", "empty.txt: is empty; name a file with text"),
    "blank.txt": (b" \n\t\n", "blank.txt: has nothing but white space"),
    "latin.txt": (
        "caf\xe9 au lait".encode("latin-1"),
        "latin.txt: byte 3 is not valid",
    ),
    "utf16.txt": ("hello world".encode("utf-16"), "utf16.txt: is UTF-16; convert it"),
    "short.txt": (b"a", "the text of 1 characters is too short to hold out"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_cannot_be_used(train, tmp_path, name):
    content, message = TEXTS[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    leaves = ["book.txt", *([name] if content is not None else [])]
    assert message in refused(train(texts=[path]), tmp_path, leaves=leaves)


def test_a_folder_is_no_text(train, tmp_path):
    assert "is a folder; name the files in it" in refused(
        train(texts=[tmp_path]), tmp_path
    )


@pytest.mark.parametrize("name", list(TEXTS)[:5])
def test_a_text_to_validate_on_that_cannot_be_used(train, book, tmp_path, name):
    content, message = TEXTS[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    leaves = ["book.txt", *([name] if content is not None else [])]
    ended = train("--valid", tmp_path / name)
    assert message in refused(ended, tmp_path, leaves=leaves)


def test_one_sentence_is_too_few(train, tmp_path):
    (tmp_path / "one.txt").write_text("the cat sat.\n")
    ended = train("--unit", "sentence", texts=[tmp_path / "one.txt"])
    assert "too few to hold one out" in refused(
        ended, tmp_path, leaves=("book.txt", "one.txt")
    )


# options of train

OPTIONS = [
    ("--hidden 0", "--hidden must be at least 1; got 0"),
    ("--hidden 999999999", "hidden must be from 1 to 16777216"),
    ("--hidden 9999999", "--hidden 9999999 and --layers 1 are too large a model"),
    ("--layers 0", "--layers must be at least 1"),
    ("--layers 5000", "layers must be from 1 to 1024; got 5000"),
    ("--embedding -1", "--embedding must be at least 0"),
    ("--tied True --embedding 3", "--tied needs --embedding as wide as --hidden = 16"),
    ("--dropout 1", "--dropout must be at least 0 and below 1"),
    ("--dropout nan", "--dropout must be"),
    ("--vocab 0", "--vocab must be at least 1"),
    ("--vocab 3", "vocab is 3; level 'char' needs 4"),
    ("--level bpe --vocab 20", "vocab is 20; level 'bpe' needs 259"),
    ("--vocab 99999999", "vocab is 99999999"),
    ("--window 0", "--window must be at least 1"),
    ("--window 5000", "fewer than one window of 5000 steps"),
    ("--k1 0", "--k1 must be at least 1"),
    ("--k1 9", "--k1 must be at most --window = 8"),
    ("--k2 0", "--k2 must be at least 1"),
    ("--k2 -3", "--k2 must be at least 1"),
    ("--k2 x", "--k2 must be a number of steps, full or auto; got 'x'"),
    ("--k2 1.5", "--k2 must be a number of steps, full or auto; got '1.5'"),
    ("--k2 Auto", "--k2 must be a number of steps, full or auto; got 'Auto'"),
    ("--k2 auto --bptt-truncate 3", "--bptt-truncate N is --k1 1 --k2 N+1; give it or"),
    ("--k2 auto --k1 3", "--window must be a multiple of --k1 = 3 where --k2 = auto"),
    ("--k2 auto --unit sentence", "--k2 auto is for --unit stream, where windows cut"),
    ("--k2 auto --unit sentence --k1 1", "--k2 auto is for --unit stream"),
    ("--k2 auto --tolerance 0", "--tolerance must be above 0; got 0.0"),
    ("--k2 auto --tolerance nan", "--tolerance must be above 0; got nan"),
    ("--k2 auto --k2-max 0", "--k2-max must be at least 1; got 0"),
    (
        "--k2 auto --k2-max 4",
        "--k2-max must be a multiple of --k1 = 8, the outputs of ",
    ),
    ("--k2 auto --k2-max 12", "got 12, try 16"),
    ("--k2 auto --k2-max 4000", "--k2 auto measures over 8000 steps, and the text "),
    ("--k2 auto --choose-every 0", "--choose-every must be at least 1; got 0"),
    ("--tolerance 0.1", "--tolerance is for --k2 auto; give that, too"),
    ("--k2 16 --tolerance 0.1", "--tolerance is for --k2 auto; give that, too"),
    ("--k2 full --k2-max 16", "--k2-max is for --k2 auto"),
    ("--choose-every 4", "--choose-every is for --k2 auto"),
    ("--k1 3 --k2 9", "--window must be a multiple of --k1 = 3"),
    ("--bptt-truncate -1", "--bptt-truncate must be at least 0"),
    ("--bptt-truncate 3 --k1 1", "--bptt-truncate N is --k1 1 --k2 N+1; give it or"),
    ("--bptt-truncate 3 --k2 full", "--bptt-truncate N is"),
    ("--unit sentence --k2 3", "--k2 with --unit sentence needs --k1"),
    ("--one-a-line", "--one-a-line is for --unit sentence"),
    ("--batch 0", "--batch must be at least 1"),
    ("--lr 0", "--lr must be above 0"),
    ("--lr -1", "--lr must be above 0"),
    ("--lr nan", "--lr must be above 0"),
    ("--lr inf", "--lr must be above 0"),
    ("--clip -1", "--clip must be at least 0"),
    ("--weight-decay -1", "--weight-decay must be at least 0"),
    ("--epochs 1", "give one of --epochs and --steps, not both"),
    ("--minutes 1", "give one of --steps and --minutes"),
    ("--seed -1", "--seed must be at least 0"),
    ("--seed 9223372036854775808", "--seed must be"),
    ("--snapshot-every 0", "--snapshot-every must be at least 1"),
    ("--device nonsense", "--device nonsense cannot be used"),
    ("--device meta", "--device meta cannot be used"),
    ("--device hpu", "--device hpu cannot be used"),
    ("--device cuda:99", "--device cuda:99 cannot be used"),
    ("--out None --resume", "--resume needs --out RUN"),
]


@pytest.mark.parametrize(("words", "message"), OPTIONS, ids=[x for x, _ in OPTIONS])
def test_an_option_of_train_that_cannot_be(train, tmp_path, words, message):
    assert message in refused(train(*words.split()), tmp_path)


@pytest.mark.parametrize(
    "words", ["--steps 0", "--epochs 0", "--minutes 0", "--minutes -1", "--minutes nan"]
)
def test_a_run_of_no_length(train, tmp_path, words):
    message = refused(train(*words.split(), steps=None), tmp_path)
    assert f"{words.split()[0]} must be" in message


UNPARSED = [
    ("train --hiden 3", "--hidden"),
    ("train --hidden", "--hidden"),
    ("train --hidden x", "--hidden"),
    ("train --hidden 1.5", "--hidden"),
    ("train --lr x", "--lr"),
    ("train --k2 auto --tolerance x", "--tolerance"),
    ("train --cell transformer", "--cell"),
    ("train --level byte", "--level"),
    ("train --unit page", "--unit"),
    ("train --optimizer adam", "--optimizer"),
    ("evaluate", "RUN"),
    ("evaluate run --jsn", "--jsn"),
    ("generate", "RUN"),
    ("generate run --length x", "--length"),
    ("check now", "now"),
    ("tain", "tain"),
    ("--nonsense", "--nonsense"),
]


@pytest.mark.parametrize(("words", "named"), UNPARSED, ids=[x for x, _ in UNPARSED])
def test_what_the_parser_refuses(bptt, tmp_path, monkeypatch, words, named):
    monkeypatch.chdir(tmp_path)
    ended = bptt(*words.split())
    assert (ended.code, ended.out) == (2, "")
    assert named in ended.err
    assert list(tmp_path.iterdir()) == []


# folders


def test_a_folder_that_is_taken(train, tmp_path):
    assert train().code == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    message = refused(train(), tmp_path, leaves=("book.txt", "run"))
    assert "run: the folder is not empty; name another one, or go on" in message
    assert before == {p: p.read_bytes() for p in before}


def test_a_file_or_what_cannot_be_made_is_no_folder(train, book, tmp_path):
    for path in (book, book / "run"):
        ended = train("--out", path)
        assert "the folder cannot be used: Not a directory" in refused(ended, tmp_path)


def test_an_empty_folder_is_free(train, tmp_path):
    (tmp_path / "run").mkdir()
    assert train(steps=1).code == 0


@pytest.mark.parametrize("command", ["evaluate", "generate"])
def test_what_is_no_run(bptt, book, tmp_path, command):
    texts = [book] if command == "evaluate" else []
    for path in (tmp_path / "nowhere", tmp_path, book):
        message = refused(bptt(command, path, *texts), tmp_path)
        assert f"{path} is no run: it has no manifest.json" in message


def test_a_run_without_its_manifest_is_damaged_and_no_other_folder(bptt, train, book):
    path = book.parent / "run"
    assert train(steps=1).code == 0
    (path / "manifest.json").unlink()
    for words in (("generate", path), ("flow", path, book), ("report", path)):
        ended = bptt(*words)
        assert ended.code == 3
        assert f"{path / 'manifest.json'} cannot be read" in ended.message


# evaluate and generate


@pytest.fixture
def run(train, tmp_path):
    assert train(steps=1).code == 0
    return tmp_path / "run"


def test_evaluate_on_what_cannot_be_used(bptt, run, tmp_path):
    for name, (content, message) in TEXTS.items():
        if name == "short.txt":
            message = "the text of 1 characters makes 1 token(s); at least 2 are needed"
        if content is not None:
            (tmp_path / name).write_bytes(content)
        ended = bptt("evaluate", run, tmp_path / name, "--json")
        assert ended.code == 2
        assert message in ended.message
    ended = bptt("evaluate", run)
    assert ended.code == 2
    assert "TEXT" in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--length -1", "length must be at least 0; got -1"),
        ("--temperature -1", "temperature must be at least 0; got -1.0"),
        ("--temperature nan", "temperature must be at least 0; got nan"),
        ("--temperature inf", "temperature must be at least 0; got inf"),
        ("--seed -1", "seed must be at least 0"),
        (f"--seed {2**64}", "seed must be at least 0"),
        ("--prompt \udcff", "half of a surrogate pair"),
    ],
)
def test_generate_with_what_cannot_be(bptt, run, words, message):
    ended = bptt("generate", run, *words.split())
    assert ended.code == 2
    assert message in ended.message


# failures that are nobody's usage


def test_a_run_that_diverges_fails_with_1(train, tmp_path):
    for words in ("--lr 1e30", "--optimizer sgd --lr 1e38", "--clip 0 --lr 1e38"):
        ended = train(*words.split(), "--out", tmp_path / words)
        assert (ended.code, ended.out) == (1, "")
        last = ended.err.splitlines()[-1]
        assert last.startswith("bptt: step ")
        assert "the run diverged; try a smaller --lr" in last


def test_a_perplexity_that_overflows_is_null(bptt, run, monkeypatch, tmp_path):
    from bptt.cli import commands
    from bptt.training import Measurement

    monkeypatch.setattr(commands, "evaluate", lambda *_: Measurement(800.0, 3))
    (tmp_path / "x.txt").write_text(text(2))
    found = json.loads(bptt("evaluate", run, tmp_path / "x.txt", "--json").out)
    assert found["perplexity"] is None
    assert found["loss"] == 800.0


def test_a_disk_that_is_full_fails_with_1(train, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    ended = train()
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines()[-1].startswith("bptt: ")
    assert "No space left on device" in ended.err


@pytest.mark.parametrize(
    ("given", "meant"), [("gruu", "gru"), ("LSTM", "lstm"), ("ltsm", "lstm")]
)
def test_a_cell_that_was_meant_is_suggested(bptt, given, meant):
    ended = bptt("train", "--cell", given)
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == f"bptt: did you mean --cell {meant}?"


def test_no_cell_is_suggested_for_what_is_none(bptt):
    ended = bptt("train", "--cell", "transformer")
    assert ended.code == 2
    assert "did you mean" not in ended.err
    assert "did you mean" not in bptt("train", "--cell", "gru", "--steps", "x").err
