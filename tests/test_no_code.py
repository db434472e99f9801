"""No file that is read can make the package run code."""

import ast
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bptt
from bptt.errors import CheckpointError
from bptt.language_model import LanguageModel, ModelConfig
from bptt.text import Tokenizer
from bptt.training import RunFolder
from bptt.training.run_folder import Progress

BANNED = """
import pickle
from marshal import loads
import torch, numpy, importlib, yaml, shelve
torch.load("f")
torch.save(1, "f")
numpy.load("f")
importlib.import_module("m")
eval("1")
exec("1")
""".strip()


def test_the_linter_bans_what_runs_code():
    root = Path(__file__).parents[1]
    words = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config"]
    words += [root / "pyproject.toml", "--output-format", "json"]
    words += ["--select", "TID251,S", "--stdin-filename", root / "src/bptt/x.py", "-"]
    ran = subprocess.run(words, input=BANNED, capture_output=True, text=True)
    if "No module named ruff" in ran.stderr:
        pytest.skip("ruff is not installed")
    lines = {found["location"]["row"] for found in json.loads(ran.stdout)}
    assert lines == set(range(1, len(BANNED.splitlines()) + 1))


def test_nothing_in_the_package_compiles_or_imports_by_name():
    for path in Path(bptt.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = ("__import__", "compile", "eval", "exec")
                assert node.func.id not in names, path


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path, how):
        self.path, self.how = str(path), how

    def __reduce__(self):
        return {
            "open": (open, (self.path, "w")),
            "system": (os.system, (f"touch {self.path}",)),
            "exec": (exec, (f"open({self.path!r}, 'w')",)),
        }[self.how]


def hostile(mark):
    """Contents that would leave `mark` behind, were they run."""
    code = f"__import__('os').mknod({str(mark)!r})"
    for how in ("open", "system", "exec"):
        evil = Evil(mark, how)
        for protocol in (0, 2, 4):
            yield pickle.dumps(evil, protocol)
        yield pickle.dumps({"format": 1, "model": evil})
    saved = mark.parent / "saved"
    torch.save(Evil(mark, "open"), saved)
    yield saved.read_bytes()
    torch.save({"w": Evil(mark, "exec")}, saved, _use_new_zipfile_serialization=False)
    yield saved.read_bytes()
    for text in (
        code,
        f"!!python/object/apply:os.mknod ['{mark}']",
        json.dumps({"py/reduce": [{"py/type": "os.mknod"}, [str(mark)]]}),
        json.dumps({"format": 1, "model": {"vocab": 5, "cell": code}}),
        json.dumps({"format": 1, "model": {"vocab": 5, "cell": "os.mknod"}}),
        json.dumps({"format": 1, "model": {"vocab": 5, "__class__": code}}),
        json.dumps({"format": 1, "model": {"__reduce__": code, "vocab": 5}}),
        json.dumps({"format": 1, "model": {"vocab": 5}, "_target_": "os.mknod"}),
        json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": code}}),
        json.dumps({"__metadata__": {"code": code}}),
        json.dumps({"files": {"../mark": {"size": 0, "sha256": code}}}),
        "${jndi:ldap://localhost}",
        "{{ cycler.__init__.__globals__.os }}",
        f"#!/bin/sh\ntouch {mark}",
        f"import os; os.mknod({str(mark)!r})",
        json.dumps({"version": "1.0", "normalizer": {"type": code}, "model": code}),
        json.dumps({"format": 1, "training": {"optimizer": code, "device": code}}),
    ):
        yield text.encode()


@pytest.mark.parametrize("vouched", [True, False])
def test_what_would_run_runs_nothing(tmp_path, vouched):
    mark = tmp_path / "mark"
    contents = list(hostile(mark))
    assert len(contents) >= 30
    pickle.loads(contents[4])
    assert mark.exists()  # it would
    mark.unlink()
    tokenizer = Tokenizer.train("the cat", "char")
    model = LanguageModel(ModelConfig(vocab=tokenizer.size, hidden=2), tokenizer)
    folder = RunFolder(tmp_path / "run")
    folder.create()
    model.save_pretrained(folder.path)
    folder.save_snapshot(Progress(data="d", step=1), {"w": torch.zeros(1)})
    snapshot = folder.path / "checkpoints" / "step-000000001"
    wholes = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    for content in contents:
        for path, whole in wholes.items():
            if vouched and path.name != "manifest.json":
                write_vouched(path, content)
            else:
                path.write_bytes(content)
            with pytest.raises(CheckpointError) as caught:
                load(folder, of_snapshot=path.is_relative_to(snapshot))
            assert path.name in str(caught.value)
            assert not mark.exists()
            path.write_bytes(whole)
            (path.parent / "manifest.json").write_bytes(
                wholes[path.parent / "manifest.json"]
            )
    LanguageModel.from_pretrained(folder.path)


def load(folder, *, of_snapshot):
    if of_snapshot:
        folder.load_snapshot()
    else:
        LanguageModel.from_pretrained(folder.path)


def write_vouched(path, content):
    manifest = json.loads((path.parent / "manifest.json").read_bytes())
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"][path.name] = entry
    (path.parent / "manifest.json").write_text(json.dumps(manifest))
    path.write_bytes(content)
