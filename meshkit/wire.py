"""Messages as on the wire, put together from parts that are written already."""

_LENGTH_DELIMITED = 2


def field(number: int, payload: bytes) -> bytes:
    """Return a field that has a length: a message, a packed array, a text."""
    return varint(number << 3 | _LENGTH_DELIMITED) + varint(len(payload)) + payload


def varint(number: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first; MQTT writes its lengths so, too."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
