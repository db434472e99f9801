"""Reading a file that the user named: refused in one line rather than read for ever."""

import os
import stat
from pathlib import Path

from bptt.errors import InputError


def shown(path: Path) -> str:
    """A path for a message of one line, whatever characters are in its name."""
    name = str(path)
    return name if name.isprintable() and name.strip() == name else ascii(name)


def read_regular_file(path: Path, *, limit_bytes: int | None = None) -> bytes:
    """The bytes of a regular file; pipes and devices are refused without opening them.

    Args:
        path: The file; a link is followed.
        limit_bytes: The largest size to accept, or `None` for any.

    Raises:
        InputError: In one line that begins with the path, what is wrong with it.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{shown(path)}: is a folder; name the files in it")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(
                f"{shown(path)}: is a pipe or device, not a regular file; save the "
                "text in a file and name that"
            )
        with path.open("rb") as file:
            data = file.read(-1 if limit_bytes is None else limit_bytes + 1)
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such file; check the name") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "it cannot be read"
        raise InputError(
            f"{shown(path)}: {reason}; check the name and its permissions"
        ) from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        # a name with a NUL byte, or one that the file system cannot encode
        raise InputError(f"{shown(path)}: is no file name; check it") from None
    if limit_bytes is not None and len(data) > limit_bytes:
        raise InputError(
            f"{shown(path)}: is larger than {limit_bytes:,} bytes; it is not a file "
            "of the kind expected here"
        )
    return data
