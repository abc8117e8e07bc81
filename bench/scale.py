"""How much a bench does: its defaults are the official measurement, a quick look sets less."""

import os
import resource


def scale(name: str, default: int) -> int:
    """Return a quantity of the bench: BENCH_<NAME> in the environment, else its default."""
    return int(os.environ.get(f"BENCH_{name}", default))


def raise_file_limit() -> None:
    """Let this process, and those that it starts, have as many connections as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
