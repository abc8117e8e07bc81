"""Messages of gRPC and gRPC-Web as they are on the wire."""

import struct
from collections.abc import Iterator

from google.protobuf.message import Message

_PREFIX = struct.Struct(">BI")


def framed(message: Message) -> bytes:
    """Return a message behind its prefix."""
    payload = message.SerializeToString()
    return _PREFIX.pack(0, len(payload)) + payload


def frames(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield flags and payload of each frame."""
    while body:
        flags, length = _PREFIX.unpack_from(body)
        end = _PREFIX.size + length
        yield flags, body[_PREFIX.size : end]
        body = body[end:]
