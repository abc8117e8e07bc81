"""A client of HTTP/2 that need not do what clients should."""

import socket
from collections.abc import Iterator, Mapping

import h2.config
import h2.connection
import h2.events


class Http2:
    """One connection of HTTP/2, frame by frame; what it sends need not be allowed.

    Args:
        connection: an open one, which this closes.
        authority: whom it is connected to.
    """

    def __init__(self, connection: socket.socket, authority: str) -> None:
        self._socket = connection
        config = h2.config.H2Configuration(client_side=True, validate_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self._authority = authority

    def __enter__(self) -> "Http2":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def open_stream(
        self, path: str, *, content_type: str = "application/json", more: Mapping[str, str] | None = None
    ) -> int:
        """Send headers of a POST whose body does not come."""
        stream = self.h2.get_next_available_stream_id()
        headers = [(":method", "POST"), (":scheme", "http"), (":authority", self._authority), (":path", path)]
        self.h2.send_headers(stream, [*headers, ("content-type", content_type), *(more or {}).items()])
        return stream

    def open_rpc(self, path: str, more: Mapping[str, str] | None = None) -> int:
        """Send the headers of a gRPC call whose message does not come."""
        return self.open_stream(
            path, content_type="application/grpc", more={"te": "trailers", **(more or {})}
        )

    def flush(self) -> None:
        """Send what was written.

        Raises:
            ConnectionError: the other side has closed.
        """
        self._socket.sendall(self.h2.data_to_send())

    def events(self) -> Iterator[h2.events.Event]:
        """Read what comes, until the other side closes."""
        try:
            while data := self._socket.recv(65536):
                yield from self.h2.receive_data(data)
        except ConnectionError:
            return

    def settle(self) -> None:
        """Wait until all that was sent has been read: frames are handled in order."""
        self.h2.ping(bytes(8))
        self.flush()
        next(each for each in self.events() if isinstance(each, h2.events.PingAckReceived))
