"""ReceiptService: the contract's side of receipts."""

from typing import Any

from ingest_svc.receipts import Receipts
from meshkit.identity import current_principal
from twinmesh.ingest.v1 import receipt_service_pb2 as contract
from twinmesh.ingest.v1 import receipt_service_pb2_grpc as contract_grpc


class ReceiptServicer(contract_grpc.ReceiptServiceServicer):
    """Serves twinmesh.ingest.v1.ReceiptService.

    Args:
        receipts: looks them up.
    """

    def __init__(self, *, receipts: Receipts) -> None:
        self._receipts = receipts

    async def LookupReceipt(
        self, request: contract.LookupReceiptRequest, context: Any
    ) -> contract.LookupReceiptResponse:
        return await self._receipts.look_up(current_principal(), request)
