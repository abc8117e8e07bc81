"""JWTs in the form of NATS: what it asks about log-ins, and what it is answered.

They are signed with Ed25519 like others, but under an algorithm name of NATS's own.
Format: https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_callout
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

_ALGORITHM = "ed25519-nkey"
_VERSION = 2
_jws = jwt.PyJWS()
_jws.register_algorithm(_ALGORITHM, OKPAlgorithm())


@dataclass(frozen=True, slots=True)
class LoginRequest:
    """What NATS asks.

    Attributes:
        user: as the device sent it, "" when it sent none.
        password: likewise.
        connection: key by which NATS knows the connection.
        server: id of the server that asks.
        host: address of the device.
        protocol: what it speaks, "mqtt" or another.
        client_id: by which it tells its sessions apart, "" when it speaks no MQTT.
        certificate: that it has shown, PEM, verified by the server; "" when it was asked for none.
    """

    user: str
    password: str
    connection: str
    server: str
    host: str
    protocol: str
    client_id: str = ""
    certificate: str = ""

    @classmethod
    def parse(cls, token: bytes) -> "LoginRequest":
        """Read a request. It comes over the system account, where only the server publishes.

        Raises:
            ValueError: it is none.
        """
        try:
            claims = jwt.decode(token, options={"verify_signature": False})["nats"]
            sent, client = claims["connect_opts"], claims["client_info"]
            return cls(
                user=str(sent.get("user", "")),
                password=str(sent.get("pass", "")),
                connection=str(claims["user_nkey"]),
                server=str(claims["server_id"]["id"]),
                host=str(client.get("host", "")),
                protocol=str(client.get("type", "")),
                client_id=str(client.get("mqtt_id", "")),
                certificate=_verified(claims.get("client_tls")),
            )
        except (jwt.PyJWTError, LookupError, AttributeError, TypeError) as error:
            raise ValueError(f"no request of NATS: {error!r}") from error


def _verified(tls: Mapping[str, Any] | None) -> str:
    """Return the client's own certificate of the chain that the server has verified, "" for none."""
    chains = (tls or {}).get("verified_chains") or []
    return str(chains[0][0]) if chains and chains[0] else ""


class LoginAnswers:
    """Answers NATS about log-ins.

    Args:
        issuer: public nkey that NATS is configured with.
        key: 32 bytes of its private half.
    """

    def __init__(self, *, issuer: str, key: bytes) -> None:
        self._issuer = issuer
        self._key = Ed25519PrivateKey.from_private_bytes(key)

    def permit(
        self,
        request: LoginRequest,
        *,
        account: str,
        name: str,
        publish: Sequence[str],
        now: int,
        expire: int | None,
    ) -> bytes:
        """Return the answer that lets a device in.

        Args:
            request: to be answered.
            account: where the device then is.
            name: by which NATS knows it.
            publish: all subjects it may publish to; it may subscribe to none.
            now: seconds since the epoch.
            expire: when NATS is to disconnect it, None: never.
        """
        user: dict[str, Any] = {
            "sub": request.connection,
            "aud": account,
            "name": name,
            "nats": {
                "type": "user",
                "version": _VERSION,
                # To NATS an empty list allows everything.
                "pub": {"allow": list(publish)} if publish else {"deny": [">"]},
                "sub": {"deny": [">"]},
                "subs": -1,
                "data": -1,
                "payload": -1,
                "allowed_connection_types": ["MQTT"],
            },
        }
        if expire is not None:
            user["exp"] = expire
        return self._answer(request, {"jwt": self._sign(user, now).decode()}, now)

    def refuse(self, request: LoginRequest, *, why: str, now: int) -> bytes:
        """Return the answer that turns a device away; NATS logs why."""
        return self._answer(request, {"error": why}, now)

    def _answer(self, request: LoginRequest, content: Mapping[str, str], now: int) -> bytes:
        return self._sign(
            {
                "sub": request.connection,
                "aud": request.server,
                "nats": {"type": "authorization_response", "version": _VERSION, **content},
            },
            now,
        )

    def _sign(self, claims: Mapping[str, Any], now: int) -> bytes:
        full = {**claims, "iss": self._issuer, "iat": now, "jti": secrets.token_hex(16)}
        return _jws.encode(json.dumps(full).encode(), self._key, algorithm=_ALGORITHM).encode()
