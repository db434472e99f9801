import json
import math
import shutil
import tracemalloc
from functools import cache

import pytest
import safetensors.torch
import torch

import bptt
from bptt import storage
from bptt.errors import CheckpointError
from bptt.language_model import LanguageModel, ModelConfig
from bptt.text import Tokenizer
from damage import header, vouched

FILES = ("config.json", "model.safetensors", "tokenizer.json")
CELLS = ("rnn", "gru", "lstm")
INPUTS = {
    "one-hot": {},
    "embedding": {"embedding": 3},
    "tied": {"embedding": 5, "tied": True},
}


@cache
def tokenizer(text="abca bcd.\nabcd\n"):
    return Tokenizer.train(text, "char")


def make(cell="lstm", **options):
    """A model with random weights, in evaluation mode."""
    options = {"hidden": 5, "layers": 2, **options}
    torch.manual_seed(1)
    config = ModelConfig(vocab=tokenizer().size, cell=cell, **options)
    return LanguageModel(config, tokenizer()).eval()


def some_ids():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(tokenizer().size, (9, 3), generator=generator)


@pytest.fixture
def folder(tmp_path):
    make().save_pretrained(tmp_path / "run", training={"lr": 0.1})
    return tmp_path / "run"


def swap(folder, **changed):
    """Write other contents, with a manifest that vouches for them."""
    files = storage.read_files(folder, FILES)
    names = {name.split(".")[0]: name for name in FILES}
    for name, data in changed.items():
        files[names[name]] = data
    storage.write_files(folder, {n: d for n, d in files.items() if d is not None})


def config_with(folder, **changed):
    config = json.loads((folder / "config.json").read_bytes())
    config["model"] |= changed
    return json.dumps(config).encode()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, cell, given, bias):
    model = make(cell, bias=bias, dropout=0.3, unit="sentence", **INPUTS[given])
    model.train().save_pretrained(tmp_path)
    again = LanguageModel.from_pretrained(tmp_path)
    assert not again.training
    assert again.config == model.config
    assert again.tokenizer.to_json() == tokenizer().to_json()
    assert torch.equal(again(some_ids())[0], model.eval()(some_ids())[0])
    assert again.generate(seed=1, length=20) == model.generate(seed=1, length=20)
    if model.config.tied:
        assert again.decoder.weight is again.embedding.weight
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert sum(weight.numel() for weight in weights.values()) == sum(
        parameter.numel() for parameter in model.parameters()
    )


def test_a_saved_model_keeps_its_dtype(tmp_path):
    model = make().double()
    model.save_pretrained(tmp_path)
    again = bptt.LanguageModel.from_pretrained(tmp_path)
    assert again.decoder.weight.dtype == torch.float64
    assert torch.equal(again(some_ids())[0], model(some_ids())[0])


def test_saving_without_a_tokenizer(tmp_path):
    make().save_pretrained(tmp_path)
    model = LanguageModel(ModelConfig(vocab=5, hidden=3))
    model.save_pretrained(str(tmp_path))  # over the other, whose tokenizer.json stays
    assert LanguageModel.from_pretrained(str(tmp_path)).tokenizer is None


def test_the_configuration_is_written_in_full(folder):
    assert json.loads((folder / "config.json").read_bytes()) == {
        "format": 1,
        "model": {
            "vocab": tokenizer().size,
            "cell": "lstm",
            "hidden": 5,
            "layers": 2,
            "embedding": 0,
            "tied": False,
            "bias": True,
            "dropout": 0.0,
            "unit": "stream",
            "one_a_line": False,
        },
        "training": {"lr": 0.1},
    }
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*FILES, "manifest.json"]
    )


# damage


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_flipped_byte_is_noticed_in_each_file(folder, name):
    data = (folder / name).read_bytes()
    for position in range(0, len(data), max(1, len(data) // 20)):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        (folder / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=name):
            LanguageModel.from_pretrained(folder)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("left", [0, 10, -1])
def test_a_file_cut_short_is_noticed(folder, name, left):
    (folder / name).write_bytes((folder / name).read_bytes()[:left])
    with pytest.raises(CheckpointError, match=name):
        LanguageModel.from_pretrained(folder)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_noticed(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        LanguageModel.from_pretrained(folder)


def test_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
        LanguageModel.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config", "model"])
def test_a_manifest_without_what_is_needed(folder, name):
    swap(folder, **{name: None})
    with pytest.raises(CheckpointError, match=rf"manifest\.json lists no {name}"):
        LanguageModel.from_pretrained(folder)


OTHER_MODELS = {
    "other width": {"hidden": 6},
    "fewer layers": {"layers": 1},
    "more layers": {"layers": 3},
    "other cell": {"cell": "gru"},
    "no biases": {"bias": False},
    "with an embedding": {"embedding": 5},
    "tied": {"embedding": 5, "tied": True},
}


@pytest.mark.parametrize("other", OTHER_MODELS)
def test_weights_of_another_model(folder, tmp_path, other):
    make(**{"cell": "lstm", **OTHER_MODELS[other]}).save_pretrained(tmp_path / "other")
    swap(folder, model=(tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: the tensors .* do not fit config"
    ):
        LanguageModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 100,
        b"\xff" * 8 + b"{}",
        safetensors.torch.save({}),
        b"\x02\0\0\0\0\0\0\0{}",
    ],
    ids=["empty", "text", "huge header", "no tensors", "bare header"],
)
def test_what_are_no_weights(folder, content):
    swap(folder, model=content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        LanguageModel.from_pretrained(folder)


@pytest.mark.parametrize("dtypes", [("int64",), ("float32", "float64"), ("bool",)])
def test_weights_of_a_wrong_dtype(folder, dtypes):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    for i, name in enumerate(weights):
        weights[name] = weights[name].to(getattr(torch, dtypes[i % len(dtypes)]))
    swap(folder, model=safetensors.torch.save(weights))
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: the weights must be floats of one"
    ):
        LanguageModel.from_pretrained(folder)


WRONG_FIELDS = {
    "unknown": {"colour": "red"},
    "cell": {"cell": "transformer"},
    "hidden below 1": {"hidden": 0},
    "huge": {"hidden": 10**12},
    "more than 64 bits": {"hidden": 10**30},
    "many layers": {"layers": 10**7},
    "text for a number": {"hidden": "5"},
    "fraction": {"hidden": 5.5},
    "null": {"hidden": None},
    "boolean": {"layers": True},
    "NaN": {"dropout": math.nan},
    "infinite": {"dropout": math.inf},
    "dropout": {"dropout": 1.5},
    "tied": {"tied": True},
}


@pytest.mark.parametrize("wrong", WRONG_FIELDS)
def test_a_configuration_with_a_wrong_field(folder, wrong):
    swap(folder, config=config_with(folder, **WRONG_FIELDS[wrong]))
    (field,) = WRONG_FIELDS[wrong]
    with pytest.raises(CheckpointError, match=r"config\.json: ") as caught:
        LanguageModel.from_pretrained(folder)
    assert field in str(caught.value)
    at = "`$.model`" if field in ("colour", "tied") else f"`$.model.{field}`"
    assert str(caught.value).endswith(f" - at {at}")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe\xfd",
        b'{"format": 2, "model": {"vocab": 5}}',
        b'{"format": 1, "model": {"vocab": 5}, "more": 1}',
        b'{"format": 1, "model": {}}',
        b'{"format": 1, "model": {"vocab": 5}, "training": 3}',
        b'{"format": 1, "model": {"vocab": 5, "dropout": 1e999}}',
        b'{"format": 1, "model": ' + b"[" * 100_000,
    ],
    ids=lambda content: content[:60].decode("latin-1"),
)
def test_what_is_no_configuration(folder, content):
    swap(folder, config=content)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        LanguageModel.from_pretrained(folder)


@pytest.mark.parametrize("field", ["hidden", "embedding"])
def test_a_large_configuration_takes_no_memory(folder, field):
    swap(folder, config=config_with(folder, **{field: 2**24}))
    with pytest.raises(CheckpointError, match="do not fit"):
        LanguageModel.from_pretrained(folder)


def test_a_tokenizer_of_another_size(folder):
    swap(folder, tokenizer=tokenizer("ab").to_json().encode())
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json has 5 tokens and config.json says"
    ):
        LanguageModel.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[1]"])
def test_what_is_no_tokenizer(folder, content):
    swap(folder, tokenizer=content)
    with pytest.raises(CheckpointError, match=r"run/tokenizer\.json: "):
        LanguageModel.from_pretrained(folder)


def test_a_full_disk_leaves_the_old_model(folder, monkeypatch):
    old = {name: (folder / name).read_bytes() for name in FILES}

    def replace(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", replace)
        with pytest.raises(OSError, match="No space"):
            make(hidden=7).save_pretrained(folder)
    assert {name: (folder / name).read_bytes() for name in FILES} == old
    assert LanguageModel.from_pretrained(folder).config.hidden == 5


def peak_while(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("how", ["bit", "shape", "dtype", "offsets", "begun"])
def test_what_is_refused_takes_the_memory_of_its_bytes(tmp_path, how):
    folder = tmp_path / "large"
    make(hidden=256, layers=1).save_pretrained(folder)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    name = "recurrent.weight_hh_l0"
    change = {
        "shape": lambda content: content[name].update(shape=[1]),
        "dtype": lambda content: content[name].update(dtype="I32"),
        "offsets": lambda content: content[name].update(data_offsets=[8, 4]),
    }
    if how in change:
        vouched(folder, path.name, header(data, change[how]))
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    if how == "begun":  # and a crash has left another version beside it
        for name in ("manifest.json", path.name):
            shutil.copyfile(folder / name, folder / f".{name}.new")

    def load():
        with pytest.raises(CheckpointError):
            LanguageModel.from_pretrained(folder)

    load()  # what is loaded once counts for nothing
    assert peak_while(load) < 1.2 * len(data)
