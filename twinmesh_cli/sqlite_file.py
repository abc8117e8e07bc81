"""A small SQLite file of one writer and any number of readers, in other processes."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing(path: Path, schema: str) -> Iterator[sqlite3.Connection]:
    """Opens the file to write, making it if absent; what a damaged one held is lost.

    Args:
        path: of the file.
        schema: statements that make what is not there.
    """
    try:
        connection = _open_to_write(path, schema)
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)
        connection = _open_to_write(path, schema)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Opens the file to read.

    Raises:
        FileNotFoundError: there is none.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
    try:
        yield connection
    finally:
        connection.close()


def _open_to_write(path: Path, schema: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5, check_same_thread=False)
    # What is kept may be lost in a crash; waiting for the disk would slow down what is measured.
    connection.execute("PRAGMA synchronous = OFF")
    connection.executescript(schema)
    path.chmod(0o600)
    return connection
