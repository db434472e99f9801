import errno
import hashlib
import json
import os

import pytest

from bptt import storage
from bptt.errors import CheckpointError
from failing_disk import Killed, failing

FILES = {"a.json": b'{"a": 1}', "b.bin": bytes(range(256)), "empty": b""}


@pytest.fixture
def folder(tmp_path):
    storage.write_files(tmp_path / "folder", FILES)
    return tmp_path / "folder"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(folder):
    assert storage.read_files(folder, tuple(FILES)) == FILES
    assert names_in(folder) == sorted([*FILES, "manifest.json"])


def test_the_manifest_holds_sizes_and_hashes(folder):
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest == {
        "files": {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in FILES.items()
        }
    }


def test_a_name_that_is_not_listed_is_left_out(folder):
    (folder / "c").write_bytes(b"not vouched for")
    assert storage.read_files(folder, (*FILES, "c")) == FILES


def test_a_listed_name_that_is_not_asked_for_is_refused(folder):
    with pytest.raises(CheckpointError, match=r"manifest\.json lists 'b\.bin'"):
        storage.read_files(folder, ("a.json", "empty"))


@pytest.mark.parametrize("name", ["a.json", "b.bin"])
def test_every_flipped_bit_is_noticed(folder, name):
    data = FILES[name]
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        (folder / name).write_bytes(flipped)
        with pytest.raises(CheckpointError, match=rf"{name} is damaged: its SHA-256"):
            storage.read_files(folder, tuple(FILES))


def test_another_size_is_noticed(folder):
    for data in (FILES["b.bin"][:-1], FILES["b.bin"] + b"\0", b""):
        (folder / "b.bin").write_bytes(data)
        expected = rf"b\.bin has {len(data)} bytes and the manifest says 256"
        with pytest.raises(CheckpointError, match=expected):
            storage.read_files(folder, tuple(FILES))


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read: No such file"):
        storage.read_files(folder, tuple(FILES))


def test_a_folder_in_the_place_of_a_file(folder):
    (folder / "a.json").unlink()
    (folder / "a.json").mkdir()
    with pytest.raises(
        CheckpointError, match=r"a\.json cannot be read: Is a directory"
    ):
        storage.read_files(folder, tuple(FILES))


def test_every_flipped_bit_of_the_manifest_is_noticed(folder):
    data = (folder / "manifest.json").read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1
        (folder / "manifest.json").write_bytes(flipped)
        with pytest.raises(CheckpointError):
            storage.read_files(folder, tuple(FILES))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"1",
        b"{}",
        b'{"files": []}',
        b'{"files": {"a.json": 3}}',
        b'{"files": {"a.json": {"size": 8}}}',
        b'{"files": {"a.json": {"size": "x", "sha256": ""}}}',
        b'{"files": {"a.json": {"size": NaN, "sha256": ""}}}',
        b'{"files": {"a.json": {"size": 1e999, "sha256": ""}}}',
        b'{"files": {"a.json": {"size": null, "sha256": ""}}}',
        b'{"files": ' + b"[" * 100_000,
    ],
    ids=lambda content: content[:50].decode("latin-1"),
)
def test_what_is_no_manifest_is_refused(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        storage.read_files(folder, tuple(FILES))


def test_files_are_replaced(folder):
    new = {name: data + b"new" for name, data in FILES.items()}
    storage.write_files(folder, new)
    assert storage.read_files(folder, tuple(FILES)) == new
    storage.write_files(folder, {"a.json": b"alone"})
    assert storage.read_files(folder, tuple(FILES)) == {"a.json": b"alone"}


@pytest.mark.parametrize("full_after", range(4))
def test_a_full_disk_leaves_the_old_files(folder, monkeypatch, full_after):
    synced = []

    def fsync(descriptor):
        synced.append(descriptor)
        if len(synced) > full_after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            storage.write_files(folder, dict.fromkeys(FILES, b"new"))
    assert storage.read_files(folder, tuple(FILES)) == FILES
    assert names_in(folder) == sorted([*FILES, "manifest.json"])


def test_a_single_file_is_replaced_or_kept(tmp_path, monkeypatch):
    path = tmp_path / "file"
    storage.write_atomically(path, b"old")

    def replace(*_):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="Permission denied"):
            storage.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    storage.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["file"]


@pytest.fixture
def killed_at(monkeypatch):
    """Write files, and be killed instead of the k-th call that changes the disk."""

    def write(folder, files, k, *, half=False):
        with monkeypatch.context() as patch:
            failing(patch, Killed(), k, half=half)
            try:
                storage.write_files(folder, files)
            except Killed:
                return False
        return True

    return write


def version(at):
    return {name: data + b"%d" % at for name, data in FILES.items()}


@pytest.mark.parametrize("half", [False, True])
def test_a_kill_anywhere_leaves_the_old_or_the_new_files(folder, killed_at, half):
    current, at, k = FILES, 0, 0
    done = False
    while not done:
        k += 1
        at += 1
        done = killed_at(folder, version(at), k, half=half)
        found = storage.read_files(folder, tuple(FILES))
        assert found in (current, version(at))
        current = found
    # Every open, write, fsync and rename of four files, and two syncs of the folder.
    assert k > 4 * 4 + 2
    assert current == version(at)
    assert names_in(folder) == sorted([*FILES, "manifest.json"])


def test_kills_in_a_row_never_mix_versions(folder, killed_at):
    current, at = FILES, 0
    for first in range(1, 19):
        for second in range(1, 22):
            for k in (first, second):
                at += 1
                killed_at(folder, version(at), k)
                found = storage.read_files(folder, tuple(FILES))
                assert found in (current, version(at))
                current = found
    storage.write_files(folder, FILES)
    assert storage.read_files(folder, tuple(FILES)) == FILES
    assert names_in(folder) == sorted([*FILES, "manifest.json"])


def test_what_is_damaged_is_not_taken_for_begun(folder, killed_at):
    new = version(1)
    assert not killed_at(folder, new, 15)  # between the renames
    assert storage.read_files(folder, tuple(FILES)) == new
    aside = next(path for path in folder.iterdir() if path.name.startswith(".b"))
    aside.write_bytes(b"x" * len(new["b.bin"]))
    with pytest.raises(CheckpointError, match=r"a\.json"):
        storage.read_files(folder, tuple(FILES))


@pytest.mark.parametrize("name", ["../out", "a/b", "..", ".hidden", ""])
def test_no_name_leads_out_of_the_folder(folder, name):
    entry = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    for path in (folder / "manifest.json", folder / ".manifest.json.new"):
        path.write_text(json.dumps({"files": {name: entry}}))
    with pytest.raises(CheckpointError, match="no file's name"):
        storage.read_files(folder, (name,))
    outside = sorted(folder.parent.rglob("*"))
    storage.write_files(folder, FILES)
    assert storage.read_files(folder, tuple(FILES)) == FILES
    left = [path for path in outside if path.name != ".manifest.json.new"]
    assert sorted(folder.parent.rglob("*")) == left
