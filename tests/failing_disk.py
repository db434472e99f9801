"""A disk that fails, or a process that is killed, at a chosen call."""

import os
from collections import Counter

from bptt import storage
from bptt.training import run_folder

WRITING = ("open", "write", "fsync", "replace", "rename")
CALLS = (*WRITING, "mkdir", "unlink", "rmdir")


class Killed(BaseException):
    """No handler for errors sees it, as none sees a kill."""


def failing(patch, error, k, *, half=False, kinds=WRITING):
    """Let the k-th call that changes the disk raise `error`, half written if `half`.

    Args:
        patch: pytest's.
        error: an exception, or a function to be called instead.
        k: counted from 1, over the calls of these kinds.
        half: whether half of the data is on the disk, where the call is a `write`.
        kinds: some of `CALLS`.

    Returns:
        A counter of the calls so far, by their kinds.
    """
    calls = Counter()

    def count(kind, before=lambda: None):
        calls[kind] += 1
        if kind in kinds and sum(calls[name] for name in kinds) == k:
            before()
            if callable(error):
                error()
            raise error

    def counted(kind):
        function = getattr(os, kind)

        def run(*arguments, **more):
            count(kind)
            return function(*arguments, **more)

        return run

    def opened(path, mode="r", **more):
        count("open")
        return File(open(path, mode, **more))

    class File:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            count("write", lambda: self.half_of(data))
            return self.file.write(data)

        def half_of(self, data):
            self.file.write(data[: len(data) // 2 if half else 0])
            self.file.flush()

        def __getattr__(self, name):
            return getattr(self.file, name)

    for kind in CALLS[2:]:
        patch.setattr(os, kind, counted(kind))
    for module in (storage, run_folder):
        patch.setattr(module, "open", opened, raising=False)
    return calls
