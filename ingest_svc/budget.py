"""Budgets that all streams of a process share, so that its memory is bounded whatever clients do."""

from dataclasses import dataclass, field

from meshkit.shares import Shares

INFLIGHT_BYTES = 512 * 1024 * 1024
DEFINITIONS = 2_000_000


@dataclass(frozen=True, slots=True)
class Budgets:
    """The budgets of a process, of which each tenant has a share.

    Attributes:
        inflight_bytes: serialized batches in flight.
        definitions: places of series tables.
    """

    inflight_bytes: Shares = field(default_factory=lambda: Shares(INFLIGHT_BYTES))
    definitions: Shares = field(default_factory=lambda: Shares(DEFINITIONS))
