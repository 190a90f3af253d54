"""That what is read is a file: a pipe that nobody writes to, or a device that never ends, would be read for ever."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

_OTHERS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def regular(path: Path) -> Path:
    """Return `path`. Raises OSError where it is neither a file nor a folder, or where there is nothing."""
    if kind := _OTHERS.get(stat.S_IFMT(path.stat().st_mode)):
        raise OSError(errno.EINVAL, f"is {kind}, not a file", str(path))
    return path
