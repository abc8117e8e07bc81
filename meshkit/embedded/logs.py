"""Log files that do not grow without end."""

import contextlib
import os
import shutil
from pathlib import Path

LOG_BYTES = 20 * 1024 * 1024


def bound_log(path: Path, *, limit: int = LOG_BYTES) -> bool:
    """Move what a log of more than `limit` bytes holds to `<path>.1`; return whether it was moved.

    Copied and cut, not renamed: its writer holds the file open, and must have opened it
    for appending. What is written between copy and cut is lost. Where there is no room
    for the copy, the log stays as it is and the copy before is given up.
    """
    moved = path.with_suffix(path.suffix + ".1")
    try:
        if path.stat().st_size <= limit:
            return False
        moved.unlink(missing_ok=True)
        shutil.copyfile(path, moved)
        os.truncate(path, 0)
    except FileNotFoundError:
        return False
    except OSError:
        with contextlib.suppress(OSError):
            moved.unlink(missing_ok=True)
        return False
    return True
