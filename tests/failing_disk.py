"""A disk that fails, or a process that is killed, at a chosen call."""

import os

from bptt import storage
from bptt.training import run_folder


class Killed(BaseException):
    """No handler for errors sees it, as none sees a kill."""


def failing(patch, error, k, *, half=False):
    """Let the k-th call that changes the disk raise `error`, half written if `half`.

    Returns:
        A list with the number of calls so far.
    """
    calls = [0]

    def count():
        calls[0] += 1
        if calls[0] == k:
            raise error

    def counted(function):
        def run(*arguments, **more):
            count()
            return function(*arguments, **more)

        return run

    def opened(path, mode="r", **more):
        count()
        return File(open(path, mode, **more))

    class File:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            try:
                count()
            except BaseException:
                self.file.write(data[: len(data) // 2 if half else 0])
                raise
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    for name in ("fsync", "replace", "rename"):
        patch.setattr(os, name, counted(getattr(os, name)))
    for module in (storage, run_folder):
        patch.setattr(module, "open", opened, raising=False)
    return calls
