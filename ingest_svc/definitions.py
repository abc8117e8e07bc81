"""The series that a stream's client defines, as far as the process has room for them."""

import asyncio
from collections.abc import Sequence

from ingest_svc import conversion
from ingest_svc.series_table import SeriesDefinition, SeriesTable
from meshkit.errors import ResourceExhausted
from meshkit.shares import Share
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_DEFINED_AT_ONCE = 1_000
_RETRY_S = 5.0


class Definitions:
    """The definitions of one stream.

    Args:
        budget: the tenant's, of places of series tables.

    Attributes:
        table: what was defined.
    """

    __slots__ = ("_budget", "table")

    def __init__(self, *, budget: Share) -> None:
        self._budget = budget
        self.table = SeriesTable()

    async def take(self, message: ingest_pb2.SeriesDefs) -> None:
        """Take definitions into the table.

        Raises:
            InvalidArgument: ALIAS_REDEFINED.
            ResourceExhausted: INGEST_BUSY, the tenant's streams at this process define too many.
        """
        for start in range(0, len(message.defs), _DEFINED_AT_ONCE):
            self._define(conversion.to_definitions(message.defs[start : start + _DEFINED_AT_ONCE]))
            await asyncio.sleep(0)  # The other streams have their turn.

    def close(self) -> None:
        """Give back to the budget what the table takes."""
        self._budget.give_back(self.table.places)

    def _define(self, definitions: Sequence[tuple[int, SeriesDefinition]]) -> None:
        budget = self._budget
        if not budget.take(self.table.places_with(definitions) - self.table.places):
            raise ResourceExhausted(
                f"your tenant's streams at this process define {budget.used} series, of"
                f" {budget.most} at most beside those of others; open the stream again later,"
                " or at another process",
                reason=ErrorReason.ERROR_REASON_INGEST_BUSY,
                metadata={
                    "limit_name": "definitions",
                    "limit": str(budget.most),
                    "used": str(budget.used),
                },
                retry_after_s=_RETRY_S,
            )
        self.table.define(definitions)
