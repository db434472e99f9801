"""Files that anyone may have written: read, or refused in one short line.

A manifest vouches for all of them: what is tested lies behind the hashes.
"""

import json
import os
from functools import cache

import msgspec
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bptt import storage, strict_json, tensor_header
from bptt.cli.runs import load_run
from bptt.errors import CheckpointError, InputError
from bptt.language_model import LanguageModel, ModelConfig
from bptt.text import Tokenizer
from bptt.training import Options, RunFolder, flow, resolve
from damage import vouched
from hostile_json import changed
from training.problems import trainer

EXAMPLES = int(os.environ.get("BPTT_SOAK_EXAMPLES", "20"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def check_line(error, path=""):
    """What is said is one short line that names the file."""
    text = str(error)
    assert text.startswith(str(path)), text
    assert "\n" not in text, text
    assert len(text) < len(str(path)) + 300, text


@cache
def model_files():
    tokenizer = Tokenizer.train("the cat sat on a mat", "char")
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(vocab=tokenizer.size, hidden=3), tokenizer)
    config = resolve(Options(steps=3, k2="auto", hidden=3), tokenizer.size)[1]
    return model, config


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model, config = model_files()
    model.save_pretrained(folder, training=msgspec.to_builtins(config))
    names = ("config.json", "model.safetensors", "tokenizer.json", "manifest.json")
    return folder, {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was stopped, and a way to write its files anew."""
    folder = tmp_path_factory.mktemp("run")
    first, _ = trainer(folder, stop_at=(2,), steps=9, snapshot_every=1)
    with pytest.raises(Exception, match=r"^$"):
        first.run()
    return folder, first


@fuzzed
@given(data=st.data())
def test_json(data):
    text = data.draw(changed({"a": [1, {"b": None}], "c": {"d": "é", "e": 0.5}}))
    try:
        found = strict_json.loads(text)
    except ValueError as error:
        check_line(error)
    else:
        assert json.dumps(found) == json.dumps(json.loads(text))


@fuzzed
@given(data=st.data())
def test_manifest(data, saved):
    folder, files = saved
    content = json.loads(files["manifest.json"])
    (folder / "manifest.json").write_bytes(data.draw(changed(content)))
    try:
        LanguageModel.from_pretrained(folder)
    except CheckpointError as error:
        check_line(error, folder)
    finally:
        (folder / "manifest.json").write_bytes(files["manifest.json"])


@fuzzed
@given(data=st.data())
def test_config(data, saved):
    folder, files = saved
    text = data.draw(changed(json.loads(files["config.json"])))
    vouched(folder, "config.json", text)
    try:
        model, training = load_run(folder)
    except CheckpointError as error:
        check_line(error, folder)
    else:
        assert model.config.hidden == 3
        if training is not None:
            flow.trained_truncation(training)
            _ = training.search
    finally:
        vouched(folder, "config.json", files["config.json"])


@fuzzed
@given(data=st.data())
def test_tokenizer(data, saved):
    folder, files = saved
    vouched(
        folder,
        "tokenizer.json",
        data.draw(changed(json.loads(files["tokenizer.json"]))),
    )
    try:
        model = LanguageModel.from_pretrained(folder)
    except CheckpointError as error:
        check_line(error, folder / "tokenizer.json")
    else:
        assert model.tokenizer.encode("the cat").max() < model.config.vocab
    finally:
        vouched(folder, "tokenizer.json", files["tokenizer.json"])


@st.composite
def with_header(draw, data):
    """A safetensors file with another header."""
    size = int.from_bytes(data[:8], "little")
    text = draw(changed(json.loads(data[8 : 8 + size])))
    sizes = st.sampled_from([0, 1, 2**31, 2**63 - 1, 2**64 - 1, len(data)])
    said = draw(st.just(len(text)) | sizes)
    return said.to_bytes(8, "little") + text + data[8 + size :]


@fuzzed
@given(data=st.data())
def test_weights(data, saved):
    folder, files = saved
    vouched(
        folder, "model.safetensors", data.draw(with_header(files["model.safetensors"]))
    )
    try:
        model = LanguageModel.from_pretrained(folder)
    except CheckpointError as error:
        check_line(error, folder / "model.safetensors")
    else:
        shapes = {n: t.shape for n, t in model.state_dict().items()}
        assert shapes == {n: t.shape for n, t in model_files()[0].state_dict().items()}
    finally:
        vouched(folder, "model.safetensors", files["model.safetensors"])


@fuzzed
@given(data=st.data())
def test_header(data):
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.float64)}
    text = data.draw(with_header(safetensors.torch.save(tensors)))
    try:
        found = tensor_header.kinds(text)
    except ValueError as error:
        check_line(error)
        return
    try:  # where the library can read them, it reads the same
        read = safetensors.torch.load(text)
    except Exception:  # noqa: BLE001 - it has several
        return
    assert {n: tuple(t.shape) for n, t in read.items()} == {
        n: kind.shape for n, kind in found.items()
    }
    assert all(found[n].dtype in (None, t.dtype) for n, t in read.items())


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
@fuzzed
@given(data=st.data())
def test_snapshot(name, data, run):
    """What is let pass can be gone on from; else an older one is taken."""
    folder, first = run
    path = folder / "checkpoints" / "step-000000002"
    files = {n: (path / n).read_bytes() for n in ("state.json", "tensors.safetensors")}
    if name == "state.json":
        new = data.draw(changed(json.loads(files[name])))
    else:
        new = data.draw(with_header(files[name]))
    storage.write_files(path, {**files, name: new})
    again, _ = trainer(folder, steps=9, data=first.corpus)
    try:
        assert again.resume()
        if again.progress.step == 2:
            again._update(again._next_batch())
        else:
            assert again.progress.step == 1
            (said,) = again.folder.passed_over
            check_line(said, path)
    except InputError as error:
        check_line(error, "--resume needs the texts that the run began with")
    finally:
        storage.write_files(path, files)


@fuzzed
@given(data=st.data())
def test_metrics(data, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("metrics", numbered=True))
    line = {"step": 3, "valid_loss": 1.5, "k2": 8, "biases": {"8": 0.1}, "final": False}
    lines = [data.draw(changed(line)) for _ in range(2)]
    (folder.path / "metrics.jsonl").write_bytes(b"\n".join([*lines, b""]))
    try:
        folder.metrics()
        _ = folder.chosen_k2, folder.finished
        folder.load_snapshot()
    except CheckpointError as error:
        check_line(error, folder.path / "metrics.jsonl")
