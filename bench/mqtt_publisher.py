"""A publisher of MQTT 3.1.1 that costs little, so that a bench measures the other side.

The known clients take more for a message than the whole mesh does. This one publishes with
QoS 1, a window of messages at a time, and reads nothing but PUBACK.

Packets: https://docs.oasis-open.org/mqtt/mqtt/v3.1.1/os/mqtt-v3.1.1-os.html
"""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from meshkit.wire import varint

_CONNECT, _PUBLISH_QOS_1, _DISCONNECT = b"\x10", b"\x32", b"\xe0\x00"
_PUBACK_BYTES = 4
_CLEAN_WITH_LOGIN = 0xC2
_KEEP_ALIVE_S = 600
_IDS = 65_535
_READ_BYTES = 65_536


class MqttPublisher:
    """One connection of a device.

    Args:
        reader: from the broker.
        writer: to it.
        device: whose telemetry is published.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, device: str) -> None:
        self._reader = reader
        self._writer = writer
        self._topic = _text(f"devices/{device}/telemetry")
        self._unread = b""
        self._published = 0

    async def publish_all(self, payloads: Sequence[bytes], *, window: int) -> None:
        """Publish messages, so many at most without PUBACK, and return when all have theirs.

        Raises:
            ConnectionError: the broker has closed the connection.
        """
        sent = acknowledged = 0
        while acknowledged < len(payloads):
            more = payloads[sent : acknowledged + window]
            if more:
                self._writer.write(b"".join(map(self._publish, more)))
                sent += len(more)
            acknowledged += await self._acknowledgements()

    async def publish(self, payload: bytes) -> float:
        """Publish a message; return the seconds until its PUBACK."""
        began = time.perf_counter()
        await self.publish_all([payload], window=1)
        return time.perf_counter() - began

    async def until_closed(self) -> None:
        """Return when the broker has closed the connection."""
        while await self._reader.read(_READ_BYTES):
            pass

    def _publish(self, payload: bytes) -> bytes:
        self._published += 1
        body = self._topic + struct.pack(">H", self._published % _IDS + 1) + payload
        return _PUBLISH_QOS_1 + varint(len(body)) + body

    async def _acknowledgements(self) -> int:
        read = await self._reader.read(_READ_BYTES)
        if not read:
            raise ConnectionError("the broker has closed the connection")
        count, rest = divmod(len(self._unread) + len(read), _PUBACK_BYTES)
        self._unread = (self._unread + read)[-rest:] if rest else b""
        return count


@asynccontextmanager
async def connected(port: int, *, device: str, password: str, user: str = "") -> AsyncIterator[MqttPublisher]:
    """Connect a device; raises ConnectionError when it is refused.

    Args:
        port: of the broker, on 127.0.0.1.
        device: whose telemetry will be published; also the client's id.
        password: an API key.
        user: the log-in's user, when it is not the device.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        body = _text("MQTT") + bytes([4, _CLEAN_WITH_LOGIN]) + struct.pack(">H", _KEEP_ALIVE_S)
        body += _text(device) + _text(user or device) + _text(password)
        writer.write(_CONNECT + varint(len(body)) + body)
        answer = await reader.readexactly(4)
        if answer[3]:
            raise ConnectionError(f"the broker refuses: return code {answer[3]}")
        yield MqttPublisher(reader, writer, device)
        writer.write(_DISCONNECT)
    finally:
        writer.close()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">H", len(encoded)) + encoded
