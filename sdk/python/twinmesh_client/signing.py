"""Requests that are signed instead of carrying a secret.

Each call of a unary rpc, and each JSON request, is signed with an API key's signing secret: method, path,
body and date. Streams cannot be: their bodies have no end.
"""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import grpc

_SCHEME = "TM1-HMAC-SHA256"
_SECRET = re.compile(r"tms_(?P<key>[a-z0-9-]+_[a-z0-9]+(?:-[0-9]+)?)_(?P<secret>[0-9a-f]{64})")


class RequestSigner:
    """Signs requests.

    Args:
        signing_secret: of an API key, `tms_…`. Whitespace around it is taken off.
        now: tells the date, aware; within five minutes of the server's.

    Raises:
        ValueError: it is no signing secret.
    """

    def __init__(
        self, signing_secret: str, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        match = _SECRET.fullmatch(signing_secret.strip())
        if match is None:
            raise ValueError("signing_secret is not what was shown as such: tms_, key, and 64 digits")
        self._key = match["key"]
        self._secret = match["secret"].encode()
        self._now = now

    def authorization(self, method: str, path: str, body: bytes = b"") -> str:
        """Return the authorization header of one request, which counts once.

        Args:
            method: of HTTP, in capitals; that of gRPC is POST.
            path: with its query, as it is sent.
            body: as it is sent; of gRPC with the five bytes before the message.
        """
        date = self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        digest = hashlib.sha256(body).hexdigest()
        signed = "\n".join((_SCHEME, method, path, date, self._key, digest)).encode()
        signature = hmac.digest(self._secret, signed, "sha256").hex()
        return f'{_SCHEME} key="{self._key}", date="{date}", digest="{digest}", signature="{signature}"'


class SigningInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """Signs the unary calls of a channel: `grpc.aio.secure_channel(…, interceptors=[SigningInterceptor(…)])`.

    Messages are sent as they are, without compression. What grpc sends again by itself is the same request
    and refused, so a channel's retries are to be off (`grpc.enable_retries` 0).

    Args:
        signer: signs.
    """

    def __init__(self, signer: RequestSigner) -> None:
        self._signer = signer

    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        """Send a call with its signature."""
        details = client_call_details
        message = request.SerializeToString()
        body = b"\0" + len(message).to_bytes(4, "big") + message
        # grpc says str, and hands out bytes.
        method: str | bytes = details.method
        path = method.decode() if isinstance(method, bytes) else method
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        metadata.add("authorization", self._signer.authorization("POST", path, body))
        signed = grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )
        return await continuation(signed, request)
