"""How much a bench does: its defaults are the official measurement, a quick look sets less."""

import os


def scale(name: str, default: int) -> int:
    """Return a quantity of the bench: BENCH_<NAME> in the environment, else its default."""
    return int(os.environ.get(f"BENCH_{name}", default))
