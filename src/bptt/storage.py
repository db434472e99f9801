"""Files that are either the old ones or the new ones, and are known to be whole.

A folder of ours carries a `manifest.json` with the size and SHA-256 of its files:
safetensors accepts flipped bits, so the hash is what notices damage. Every file is
written aside, synced and renamed over the old one.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from bptt.errors import CheckpointError

MANIFEST = "manifest.json"


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: after a crash it holds the old or the new bytes.

    Raises:
        OSError: the disk is full, the folder is read-only, and so on.
    """
    _replace(path.parent, {path.name: data})


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` into `folder`, then the manifest that vouches for them.

    Raises:
        OSError: the disk is full, and so on; the old files stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    manifest_data = json.dumps({"files": manifest}, indent=2).encode()
    _replace(folder, {**files, MANIFEST: manifest_data})


def read_files(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The bytes of the named files of `folder`, as the manifest vouches for them.

    Names that the manifest does not list are left out.

    Raises:
        CheckpointError: the manifest is missing or damaged or lists another file, or a
            file is missing or has another size or hash than the manifest says.
    """
    expected = _read_manifest(folder)
    if others := sorted(expected.keys() - set(names)):
        raise CheckpointError(
            f"{folder / MANIFEST} lists {others[0]!a}, which does not belong here"
        )
    found = {}
    for name in names:
        if name not in expected:
            continue
        path = folder / name
        size, sha256 = expected[name]
        data = _read(path)
        if len(data) != size:
            raise CheckpointError(
                f"{path} has {len(data)} bytes and the manifest says {size}: the file "
                "is damaged, or the manifest belongs to another one"
            )
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CheckpointError(
                f"{path} is damaged: its SHA-256 is not the saved one"
            )
        found[name] = data
    return found


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """All are written aside before the first is renamed: a full disk changes none."""
    asides = {name: folder / f".{name}.new" for name in files}
    try:
        for name, data in files.items():
            with open(asides[name], "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for name, aside in asides.items():
            os.replace(aside, folder / name)
    except OSError:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
        raise
    sync_folder(folder)


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    path = folder / MANIFEST
    try:
        files = json.loads(_read(path))["files"]
        return {
            str(name): (int(entry["size"]), str(entry["sha256"]))
            for name, entry in files.items()
        }
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CheckpointError(f"{path} is damaged: not a manifest of ours") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
