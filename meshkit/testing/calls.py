"""Calls that are meant to fail, taken apart."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from meshkit import status


@dataclass(frozen=True, slots=True)
class Failure:
    """What a failed call told: status code and message, reason with its metadata, violated fields."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    fields: list[str]


async def failure(call: Awaitable[object]) -> Failure:
    """Await a call that must fail, and return what it told."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = status.status_of(caught.value)
    assert found is not None, caught.value
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in found.details:
        for target in (info, bad):
            if detail.Is(target.DESCRIPTOR):
                detail.Unpack(target)
    fields = [violation.field for violation in bad.field_violations]
    return Failure(caught.value.code(), found.message, info.reason, dict(info.metadata), fields)


async def write(call: Any, message: bytes) -> bool:
    """Write a serialized message to a call that the server may be ending; False when it has ended.

    Unlike `call.write`, which then puts INTERNAL in place of the status that the server
    gave (grpc/grpc issue 36066), this leaves the status to whoever reads.
    """
    try:
        await call.wait_for_connection()
        await call._cython_call.send_serialized_message(message)  # noqa: SLF001
    except (grpc.aio.AioRpcError, cygrpc.InternalError, asyncio.InvalidStateError):
        return False
    return True
