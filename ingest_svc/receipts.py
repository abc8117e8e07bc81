"""Receipts: what became of something that was sent, for those who may know."""

from typing import Protocol

from ingest_svc.message_path import PRINCIPAL
from meshkit import policy
from meshkit.clock import to_datetime
from meshkit.identity import Principal
from telemetry_store import chunks
from telemetry_store.receipts import Receipt, WriterReceipt
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1.receipt_service_pb2 import (
    RECEIPT_STATE_COMMITTED,
    RECEIPT_STATE_EXPIRED_OUTCOME,
    RECEIPT_STATE_UNKNOWN,
    LookupReceiptRequest,
    LookupReceiptResponse,
)

_OTHERS = "dead_letter:read"  # Whose holder sees what others of its tenant sent.


class Recorded(Protocol):
    """Where receipts are found; they raise Unavailable when nobody can tell."""

    async def of_batch(self, tenant: str, writer_id: str, sequence: int) -> WriterReceipt | None:
        """Return what is known of a writer's sequence."""
        ...

    async def of_request(self, tenant: str, principal: str, request_id: str) -> Receipt | None:
        """Return what is recorded under a principal's request id."""
        ...

    async def of_message(self, tenant: str, principal: str, message_id: str) -> Receipt | None:
        """Return what is recorded of a device's message."""
        ...


class Receipts:
    """Looks receipts up.

    Args:
        store: finds them.
    """

    def __init__(self, *, store: Recorded) -> None:
        self._store = store

    async def look_up(self, principal: Principal, asked: LookupReceiptRequest) -> LookupReceiptResponse:
        """Return what became of a batch, request or message.

        Raises:
            PermissionDenied: it asks for what others sent, without dead_letter:read or as one who is
                bound to devices.
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        if asked.writer_id:
            return await self._of_batch(principal, asked.writer_id, asked.sequence)
        tenant = principal.tenant
        if asked.request_id:
            sender = asked.principal or principal.name
            if sender != principal.name:
                _require_others(principal, "the receipt of another principal's request")
            receipt = await self._store.of_request(tenant, sender, asked.request_id)
        else:
            _require_others(principal, "the receipt of a device's message")
            sender = chunks.PRINCIPAL if "/" in asked.message_id else PRINCIPAL
            receipt = await self._store.of_message(tenant, sender, asked.message_id)
        if receipt is not None:
            return _committed(receipt)
        return LookupReceiptResponse(
            state=RECEIPT_STATE_UNKNOWN,
            message="it is not committed, or it was committed more than an hour ago",
            may_have_expired=True,
        )

    async def _of_batch(self, principal: Principal, writer_id: str, sequence: int) -> LookupReceiptResponse:
        known = await self._store.of_batch(principal.tenant, writer_id, sequence)
        sees_others = _OTHERS in principal.permissions and principal.scope is None
        if known is None or not (known.principal == principal.name or sees_others):
            return LookupReceiptResponse(
                state=RECEIPT_STATE_UNKNOWN, message="no writer of this name has committed anything"
            )
        if known.receipt is not None:
            return _committed(known.receipt)
        if sequence > known.last_sequence:
            return LookupReceiptResponse(
                state=RECEIPT_STATE_UNKNOWN,
                message=f"it is not committed; the writer's last sequence is {known.last_sequence}",
            )
        return LookupReceiptResponse(
            state=RECEIPT_STATE_EXPIRED_OUTCOME,
            message="it was committed; its outcome is no longer kept",
        )


def _require_others(principal: Principal, what: str) -> None:
    policy.require(_OTHERS, principal, method=what)
    policy.require_unbound(principal, method=what)


def _committed(receipt: Receipt) -> LookupReceiptResponse:
    told = ingest_pb2.BatchResult.FromString(receipt.outcome)
    response = LookupReceiptResponse(
        state=RECEIPT_STATE_COMMITTED,
        message=told.message or f"{told.stored_samples} samples stored, {told.refused_samples} refused",
        stored_samples=told.stored_samples,
        refused_samples=told.refused_samples,
        reason=told.reason,
        refusals=told.refusals,
        trace_id=told.trace_id,
        dead_letter_ids=map(str, receipt.dead_letters),
    )
    if receipt.recorded_us is not None:
        response.commit_time.FromDatetime(to_datetime(receipt.recorded_us))
    return response
