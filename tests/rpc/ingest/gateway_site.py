"""Gateways with children for a running ingest_svc, and messages of theirs."""

import json
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from meshkit.clock import SystemClock
from tests.rpc.ingest.neighbours import FakeAssets, Ingest
from twinmesh.asset.v1 import device_type_service_pb2 as type_pb2
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1 import value_pb2

NOW = SystemClock().now_us()
HUB, BLE = "hub-1", "ble-1"


def add_gateways(assets: FakeAssets, *, beacons: int = 50) -> None:
    """Add a hub that is demultiplexed and a gateway that sends chunks, with children b1, b2, … each."""
    assets.types["hub"] = type_pb2.DeviceType(
        id="hub",
        processing_mode=type_pb2.PROCESSING_MODE_DEMULTIPLEX,
        message_schema=type_pb2.MessageSchema(child_pointer="/tag/mac"),
        metrics=[type_pb2.MetricDefinition(name="count", kind=value_pb2.VALUE_KIND_INT)],
    )
    assets.types["ble"] = type_pb2.DeviceType(id="ble", processing_mode=type_pb2.PROCESSING_MODE_CHUNKED)
    for gateway, device_type in ((HUB, "hub"), (BLE, "ble")):
        assets.add(gateway, device_type=device_type)
        for number in range(1, beacons + 1):
            assets.add_child(f"{gateway}-b{number}", gateway, f"b{number}")


def beacons(count: int, *, first: int = 1, offset: int = 0, **further: Any) -> list[dict[str, Any]]:
    """Return objects of a chunked gateway's message; beacon n counts n + offset."""
    return [
        {"id": f"b{number}", "time": (NOW + offset) / 1e6, "count": number + offset, **further}
        for number in range(first, first + count)
    ]


def pieces(content: Any, count: int) -> list[bytes]:
    """Cut a message into so many pieces of about the same length."""
    text = json.dumps(content).encode()
    ends = [len(text) * number // count for number in range(count + 1)]
    return [text[start:end] for start, end in pairwise(ends)]


def chunks(message_id: str, parts: Sequence[bytes], *, gateway: str = BLE) -> list[ingest_pb2.DeviceMessage]:
    return [
        ingest_pb2.DeviceMessage(
            device_id=gateway,
            payload=part,
            chunk=ingest_pb2.Chunk(message_id=message_id, index=index, total=len(parts)),
        )
        for index, part in enumerate(parts)
    ]


def shuffled(messages: Sequence[Any], *, repeated: int = 0, seed: int = 1) -> list[Any]:
    """Return messages in a random order, some of them twice."""
    order = random.Random(seed)
    all_of_them = [*messages, *order.choices(messages, k=repeated)]
    order.shuffle(all_of_them)
    return all_of_them


async def send(
    ingest: Ingest, message: ingest_pb2.DeviceMessage, **fields: Any
) -> ingest_pb2.IngestMessageResponse:
    """Send a message by the unary rpc."""
    request = ingest_pb2.IngestMessageRequest(
        device_id=message.device_id,
        payload=message.payload,
        chunk=message.chunk if message.HasField("chunk") else None,
        **fields,
    )
    return await ingest.stub.IngestMessage(request, metadata=ingest.caller())


async def counts(ingest: Ingest, gateway: str = BLE) -> Mapping[str, list[int]]:
    """Return what the children of a gateway have counted, by child."""
    found: dict[str, list[int]] = {}
    for (device_id, metric, _), value in (await ingest.samples()).items():
        if metric == "count" and device_id.startswith(f"{gateway}-"):
            found.setdefault(device_id.removeprefix(f"{gateway}-"), []).append(value)
    return {name: sorted(values) for name, values in found.items()}


async def letters(ingest: Ingest) -> list[tuple[str, str, bytes]]:
    """Return reason, message and payload of the dead letters, in their order."""
    rows = await ingest.fetch_rows(
        "SELECT reason, message, payload FROM telemetry.dead_letter ORDER BY dead_letter_id"
    )
    return [tuple(row) for row in rows]


ROWS = "SELECT coalesce(sum(cardinality(ints)), 0) FROM telemetry.segment WHERE ints IS NOT NULL"
KEPT = """
    SELECT (SELECT count(*) FROM telemetry.chunked_message) + (SELECT count(*) FROM telemetry.message_chunk)
"""
