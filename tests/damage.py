"""Damage to a folder whose files a manifest vouches for; sometimes it vouches anew."""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

KINDS = ("bit", "header", "cut", "missing", "swapped", "empty", "vouched", "vocabulary")


def _flipped(data: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


def vouched(folder: Path, name: str, data: bytes) -> None:
    """Write a file that the manifest vouches for."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"][name] = entry
    path.write_text(json.dumps(manifest))
    (folder / name).write_bytes(data)


def header(data: bytes, change: "object") -> bytes:
    """A safetensors file with another header."""
    size = int.from_bytes(data[:8], "little")
    content = json.loads(data[8 : 8 + size])
    change(content)  # type: ignore[operator]
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _wrong_headers(data: bytes) -> Iterator[bytes]:
    first = next(
        k for k in json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    )
    for key, value in (
        ("shape", [1]),
        ("shape", [2**62, 4]),
        ("shape", [-1]),
        ("shape", []),
        ("dtype", "I64"),
        ("dtype", "X9"),
        ("data_offsets", [0, 2**63]),
        ("data_offsets", [8, 4]),
        ("data_offsets", [0, 0]),
    ):
        yield header(data, lambda c, k=key, v=value: c[first].update({k: v}))
    yield header(data, lambda c: c.pop(first))
    yield header(data, lambda c: c.update({first + "x": c.pop(first)}))
    for size in (0, 1, 2**31, 2**63 - 1, 2**64 - 1):
        yield size.to_bytes(8, "little") + data[8:]


def _wrong_vocabularies(datas: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Of a model: another number of tokens than the weights have, or none."""
    if "tokenizer.json" not in datas:
        return
    content = json.loads(datas["tokenizer.json"])
    vocab = content["model"]["vocab"]
    more = {**vocab, "\u2603": len(vocab)}
    fewer = {token: i for token, i in vocab.items() if i < len(vocab) - 1}
    for wrong in (more, fewer, {}):
        content["model"]["vocab"] = wrong
        yield "tokenizer.json", json.dumps(content).encode()
    config = json.loads(datas["config.json"])
    for size in (len(vocab) + 1, 2**24, 0):
        config["model"]["vocab"] = size
        yield "config.json", json.dumps(config).encode()


def damages(whole: Path, seed: int, count: int) -> "Iterator[tuple[str, str, object]]":
    """`count` of them: the file's name, what is done, and how: a call with a folder."""
    choose = random.Random(seed)
    names = sorted(p.name for p in whole.iterdir() if p.is_file())
    datas = {name: (whole / name).read_bytes() for name in names}
    tensors = next(n for n in names if n.endswith(".safetensors"))
    headers = list(_wrong_headers(datas[tensors]))
    vocabularies = list(_wrong_vocabularies(datas))
    cuts = [(name, at) for name in names for at in range(0, len(datas[name]), 64)]
    choose.shuffle(cuts)
    kinds = KINDS if vocabularies else KINDS[:-1]
    for i in range(count):
        name = choose.choice(names)
        data = datas[name]
        kind, turn = kinds[i % len(kinds)], i // len(kinds)
        new: bytes | None = None
        if kind == "header":
            name, data = tensors, datas[tensors]
            limit = min(len(data), 8 + int.from_bytes(data[:8], "little"))
            new = _flipped(data, choose.randrange(limit), choose.randrange(8))
        elif kind == "bit":
            new = _flipped(data, choose.randrange(len(data)), choose.randrange(8))
        elif kind == "cut":
            name, at = cuts[turn % len(cuts)]  # in the end, each of them
            new = datas[name][:at]
        elif kind == "swapped":
            new = datas[choose.choice([n for n in names if n != name])]
        elif kind == "empty":
            new = b""
        elif kind == "vouched":
            name, new = tensors, headers[turn % len(headers)]
        elif kind == "vocabulary":
            name, new = vocabularies[turn % len(vocabularies)]

        def apply(folder: Path, name=name, new=new, kind=kind) -> None:  # type: ignore[no-untyped-def]
            if kind in ("vouched", "vocabulary"):
                vouched(folder, name, new)
            elif new is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(new)

        yield name, kind, apply


def restore(whole: Path, folder: Path) -> None:
    """Undo a damage."""
    for path in whole.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
