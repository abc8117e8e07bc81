"""Messages as on the wire, put together from parts that are written already."""

_LENGTH_DELIMITED = 2


def field(number: int, payload: bytes) -> bytes:
    """Return a field that has a length: a message, a packed array, a text."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(payload)) + payload


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
