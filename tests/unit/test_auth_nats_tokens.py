"""What NATS asks about log-ins, and what it is answered."""

import base64
import json
from typing import Any

import jwt
import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth_svc.nats_tokens import LoginAnswers, LoginRequest
from meshkit.nats_server import issuer, issuer_key

ROOT = bytes(range(32))
SEED = nkeys.encode_seed(issuer_key(ROOT), nkeys.PREFIX_BYTE_ACCOUNT)
NOW = 1_800_000_000
REQUEST = LoginRequest("pump-1", "tmk_secret", "UCONNECTION", "NSERVER", "127.0.0.1", "mqtt")


def _encoded(content: object) -> str:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def asked(nats: object, header: object = None) -> bytes:
    """Return a request as NATS signs it; nobody looks at the signature."""
    header = {"typ": "JWT", "alg": "ed25519-nkey"} if header is None else header
    return (
        f"{_encoded(header)}.{_encoded({'nats': nats, 'iss': 'NSERVER'})}.{_encoded(b'signature')}".encode()
    )


WHOLE: dict[str, Any] = {
    "connect_opts": {"user": "pump-1", "pass": "tmk_secret", "protocol": 1},
    "client_info": {"host": "127.0.0.1", "kind": "Client", "type": "mqtt"},
    "user_nkey": "UCONNECTION",
    "server_id": {"id": "NSERVER", "name": "twinmesh"},
}


def test_a_request_is_read() -> None:
    assert LoginRequest.parse(asked(WHOLE)) == REQUEST
    anonymous = LoginRequest.parse(asked({**WHOLE, "connect_opts": {}}))
    assert (anonymous.user, anonymous.password) == ("", "")
    assert LoginRequest.parse(asked({**WHOLE, "client_info": {}})).protocol == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*WHOLE, "id", "user", "pass", "host"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(token=st.binary(max_size=80) | st.builds(asked, JSON) | st.builds(asked, JSON, JSON))
def test_what_is_no_request_is_a_value_error(token: bytes) -> None:
    try:
        LoginRequest.parse(token)
    except ValueError:
        return


@given(part=st.sampled_from(sorted(WHOLE)), found=JSON)
def test_a_request_with_a_strange_part_is_a_value_error(part: str, found: Any) -> None:
    try:
        read = LoginRequest.parse(asked({**WHOLE, part: found}))
    except ValueError:
        return
    assert all(
        isinstance(each, str) for each in (read.user, read.password, read.connection, read.server, read.host)
    )


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"...",
        b"a.b.c",
        asked(WHOLE)[:-20],
        asked(["nats"]),
        f"{_encoded({'alg': 'x'})}.{_encoded(b'[' * 100_000)}.{_encoded(b'')}".encode(),
        f"{_encoded(b'[' * 100_000)}.{_encoded({})}.{_encoded(b'')}".encode(),
        f"{_encoded({'alg': 'x'})}.{_encoded([1])}.{_encoded(b'')}".encode(),
    ],
)
def test_what_is_no_request(token: bytes) -> None:
    with pytest.raises(ValueError, match="no request of NATS"):
        LoginRequest.parse(token)


def verified(token: bytes) -> dict[str, Any]:
    """Read a JWT as NATS does, with the nkey of its issuer."""
    header, content, signature = token.decode().split(".")
    encoded = json.loads(base64.urlsafe_b64decode(header + "=="))
    assert encoded == {"typ": "JWT", "alg": "ed25519-nkey"}
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    assert base64.b32decode(claims["iss"])[1:-2] == nkeys.from_seed(SEED)._keys.verify_key.encode()
    # Raises when the signature is not that of the key.
    nkeys.from_seed(SEED).verify(f"{header}.{content}".encode(), base64.urlsafe_b64decode(signature + "=="))
    return claims


def answers() -> LoginAnswers:
    return LoginAnswers(issuer=issuer(ROOT), key=issuer_key(ROOT))


def test_a_permit_names_one_account_and_what_may_be_published() -> None:
    answer = answers().permit(
        REQUEST,
        account="DEVICES",
        name="demo/key7/pump-1",
        publish=["devices.pump-1.telemetry"],
        now=NOW,
        expire=None,
    )
    claims = verified(answer)
    assert (claims["sub"], claims["aud"], claims["iss"], claims["iat"]) == (
        "UCONNECTION",
        "NSERVER",
        issuer(ROOT),
        NOW,
    )
    assert claims["nats"].keys() == {"type", "version", "jwt"}
    user = verified(claims["nats"]["jwt"].encode())
    assert (user["sub"], user["aud"], user["name"]) == ("UCONNECTION", "DEVICES", "demo/key7/pump-1")
    assert user["nats"]["pub"] == {"allow": ["devices.pump-1.telemetry"]}
    assert user["nats"]["sub"] == {"deny": [">"]}
    assert user["nats"]["allowed_connection_types"] == ["MQTT"]
    assert "exp" not in user
    assert user["jti"] != claims["jti"]


def test_a_permit_ends_when_it_is_told() -> None:
    answer = answers().permit(REQUEST, account="A", name="n", publish=[], now=NOW, expire=NOW + 60)
    user = verified(verified(answer)["nats"]["jwt"].encode())
    assert user["exp"] == NOW + 60
    # To NATS an empty list would allow everything.
    assert user["nats"]["pub"] == {"deny": [">"]}


@given(why=st.text(max_size=20))
def test_a_refusal_says_why_and_lets_nobody_in(why: str) -> None:
    claims = verified(answers().refuse(REQUEST, why=why, now=NOW))
    assert claims["nats"] == {"type": "authorization_response", "version": 2, "error": why}
    assert (claims["sub"], claims["aud"]) == ("UCONNECTION", "NSERVER")


def test_another_key_does_not_fit() -> None:
    forged = LoginAnswers(issuer=issuer(ROOT), key=bytes(32)).refuse(REQUEST, why="", now=NOW)
    with pytest.raises(nkeys.ErrInvalidSignature):
        verified(forged)
