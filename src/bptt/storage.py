"""Files that are either the old ones or the new ones, and are known to be whole.

A folder of ours carries a `manifest.json` with the size and SHA-256 of its files:
safetensors accepts flipped bits, so the hash is what notices damage. Every file is
written aside, synced and renamed over the old one.

Several files cannot be renamed at once. So all are written aside first, their manifest
last; from then on the new version is on the disk, and a crash between the renames
leaves each of its files in one of two places. Reading looks in both, and the next
writing first settles what was begun.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bptt import strict_json
from bptt.errors import CheckpointError

MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 1 << 20  # bytes; it is read before anything vouches for it


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
    """Write `files` into `folder`, with the manifest that vouches for them.

    Raises:
        OSError: the disk is full, and so on; what `read_files` gives is the old files,
            or the new ones where only their renaming failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _finish(folder)
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
    try:
        return _read_version(folder, names, _read_manifest(folder / MANIFEST))
    except CheckpointError as error:
        damaged = error.with_traceback(None)  # whose frames hold what was read
    try:
        pending = _read_manifest(_aside(folder, MANIFEST))
        return _read_version(folder, names, pending, begun=True)
    except CheckpointError:
        raise damaged from None


_Expected = dict[str, tuple[int, str]]


def _read_version(
    folder: Path, names: Sequence[str], expected: _Expected, *, begun: bool = False
) -> dict[str, bytes]:
    """The files of one manifest; with `begun` they may still lie aside."""
    if others := sorted(expected.keys() - set(names)):
        raise CheckpointError(
            f"{folder / MANIFEST} lists {others[0]!a}, which does not belong here"
        )
    found = {}
    for name in names:
        if name not in expected:
            continue
        size, sha256 = expected[name]
        try:
            found[name] = _read_whole(folder / name, size, sha256)
        except CheckpointError:
            if not begun:
                raise
            found[name] = _read_whole(_aside(folder, name), size, sha256)
    return found


def _read_whole(path: Path, size: int, sha256: str) -> bytes:
    data = _read(path, size)
    if len(data) != size:
        raise _wrong_size(path, len(data), size)
    if hashlib.sha256(data).hexdigest() != sha256:
        del data  # which the error's traceback would keep
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the saved one")
    return data


def _wrong_size(path: Path, found: int, size: int) -> CheckpointError:
    return CheckpointError(
        f"{path} has {found} bytes and the manifest says {size}: the file is "
        "damaged, or the manifest belongs to another one"
    )


def _aside(folder: Path, name: str) -> Path:
    return folder / f".{name}.new"


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """All are written aside, in order, before the first is renamed."""
    try:
        for name, data in files.items():
            with open(_aside(folder, name), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    except OSError:
        for name in reversed(
            list(files)
        ):  # the manifest first: without it they are nothing
            _aside(folder, name).unlink(missing_ok=True)
        raise
    sync_folder(folder)
    for name in files:
        os.replace(_aside(folder, name), folder / name)
    sync_folder(folder)


def _finish(folder: Path) -> None:
    """Settle what a crash has left: keep the version that `read_files` gives."""
    pending = _aside(folder, MANIFEST)
    if not pending.exists():
        return
    try:
        current = _read_manifest(folder / MANIFEST)
        _read_version(folder, list(current), current)
    except CheckpointError:
        with suppress(CheckpointError):  # else nothing is whole, and nothing is lost
            _rename_begun(folder)
    pending.unlink(missing_ok=True)


def _rename_begun(folder: Path) -> None:
    expected = _read_manifest(_aside(folder, MANIFEST))
    _read_version(folder, list(expected), expected, begun=True)
    for name, (size, sha256) in expected.items():
        try:
            _read_whole(folder / name, size, sha256)
        except CheckpointError:
            os.replace(_aside(folder, name), folder / name)
    os.replace(_aside(folder, MANIFEST), folder / MANIFEST)
    sync_folder(folder)


def _read_manifest(path: Path) -> _Expected:
    try:
        files = strict_json.loads(_read(path))["files"]
        found = {
            str(name): (int(entry["size"]), str(entry["sha256"]))
            for name, entry in files.items()
        }
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:
        raise CheckpointError(f"{path} is damaged: not a manifest of ours") from error
    for name in found:
        if not name or Path(name).name != name or name.startswith("."):
            raise CheckpointError(f"{path} lists {name!a}, which is no file's name")
    return found


def _read(path: Path, size: int | None = None) -> bytes:
    """A regular file of this size; others are refused without reading them."""
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise CheckpointError(f"{path} cannot be read: it is a pipe or device")
        if size is not None and stat.S_ISREG(status.st_mode) and status.st_size != size:
            raise _wrong_size(path, status.st_size, size)
        if size is None and status.st_size > _LARGEST_MANIFEST:
            raise CheckpointError(f"{path} is damaged: too large for a manifest")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
