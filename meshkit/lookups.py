"""How often a cache knew the answer."""

from dataclasses import dataclass


@dataclass(slots=True)
class Lookups:
    """Counts since the process began; they only rise.

    Attributes:
        hits: what was remembered.
        misses: what had to be asked for.
    """

    hits: int = 0
    misses: int = 0
