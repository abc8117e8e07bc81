"""Every field of a request that names a thing: another tenant's is answered like one that does not exist.

Names in paths are asked for in test_tenant_ids; these are filters, parents, types and the like, found
in the descriptors, so that a new field fails here until somebody has thought of it.
"""

import re
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gateway.contract import CONTRACT, Rpc, read_contract
from meshkit.identity import INSTALLATION_PERMISSIONS
from meshkit.testing.auth import bearer
from meshkit.testing.certificates import csr, new_key
from meshkit.testing.mesh import Mesh
from tests.mesh.fuzzing import request_descriptor, response_descriptor

# What is asked for: things of the attacked tenant, and of nobody.
_NAMED, _ABSENT = "named-one", "named-two"
# Each tenant has things of a name of its own, since ids of devices are of the whole installation;
# in the requests below they have the first.
_OWN = {"attacked": "owned-one", "attacker": "owned-two"}
OWN = _OWN["attacked"]
_NAMES = re.compile(r"(^|_)(id|ids|username|role)$")
# What else is text names nothing that a tenant has, or not by itself: a principal has its kind before it, and
# a target is what the account of the caller's own tenant has; test_audit asks for both.
_NO_NAMES = {
    "address",
    "aliases",
    "allowed_addresses",
    "child_pointer",
    "csr",
    "device_unit",
    "display_name",
    "door",
    "etag",
    "message",
    "metric",
    "metrics",
    "name",
    "new_password",
    "old_password",
    "page_token",
    "password",
    "permissions",
    "principal",
    "resume_token",
    "rpc",
    "search",
    "subject",
    "tag",
    "tags",
    "target",
    "text",
    "time_pointer",
    "time_zone",
    "type",
    "types",
    "unit",
}
_FRESH = "fresh"
# Names that whoever sends makes up, or that name nobody else's things.
_MADE_UP = {"logical_id", "message_id", "request_id", "writer_id"}
_DAY = {"start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-02T00:00:00Z"}
_READINGS = [{"device_id": OWN, "numbers": {"level": 1}, "time": "2026-01-01T12:00:00Z"}]
_EVENTS = [{"device_id": OWN, "type": "opened"}]
_CHILD = {"id": _FRESH, "device_type_id": OWN, "parent_id": OWN, "role": "DEVICE_ROLE_CHILD"}
# What nothing is kept of here that could tell two names apart.
_ALIKE_FOR_ALL = {
    ("ListLimitHits", "device_id"),
    # A key is bound to names: whether there are such devices is asked when it is used, in its tenant.
    ("CreateApiKey", "device_ids"),
    ("CreateApiKey", "gateway_ids"),
}
# What else stands in a request, so that the name alone decides.
_BASES: dict[str, dict[str, Any]] = {
    "CreateAsset": {"asset": {"id": _FRESH, "asset_type_id": OWN}},
    "UpdateAsset": {"asset": {"id": OWN}},
    "CreateDevice": {"device": _CHILD},
    "UpdateDevice": {"device": {"id": f"{OWN}-child"}},
    "BatchCreateDevices": {"devices": [_CHILD]},
    "CreateDeviceType": {"device_type": {"id": _FRESH}},
    "UpdateDeviceType": {"device_type": {"id": OWN}},
    "CreateApiKey": {"display_name": "bound"},
    "IssueDeviceCertificate": {"csr": csr(new_key())},
    "CreateUser": {"user": {"username": _FRESH}},
    "UpdateUser": {"user": {"username": OWN}},
    "IngestTelemetry": {"readings": _READINGS},
    "IngestMessage": {"payload": "e30="},
    "IngestEvents": {"events": _EVENTS},
    "ReplayDeadLetters": {"filter": {}},
    "ExportHistory": {"format": "EXPORT_FORMAT_CSV"},
}


def _leaves(descriptor: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for field in descriptor.fields:
        nested = field.message_type
        if nested is not None and nested.full_name.startswith("twinmesh."):
            if nested.GetOptions().map_entry:
                continue
            yield from _leaves(nested, (*path, field.name))
        elif field.type == FieldDescriptor.TYPE_STRING and field.name not in _NO_NAMES:
            assert _NAMES.search(field.name), f"{field.full_name}: does it name a thing?"
            yield (*path, field.name)


def _references() -> list[tuple[Rpc, tuple[str, ...]]]:
    return [
        (rpc, path)
        for rpc in read_contract(CONTRACT).rpcs
        if not rpc.client_streaming and rpc.permission not in {*INSTALLATION_PERMISSIONS, "public"}
        for path in _leaves(request_descriptor(rpc))
        if path[-1] not in _MADE_UP
        if not any(f"{{{'.'.join(path)}}}" in binding.template for binding in rpc.bindings)
        # What is to be made has a name of its maker's; one of devices that is taken is told (DESIGN.md, 4).
        if not (rpc.name.startswith(("Create", "BatchCreate")) and len(path) == 2 and path[-1] == "id")
        if not (rpc.name == "CreateUser" and path[-1] == "username")
    ]


@pytest.fixture(scope="module")
def tokens(mesh: Mesh) -> dict[str, str]:
    """Tokens of the attacked tenant and of the other one, which know nothing of each other."""
    made = {}
    for tenant in ("attacked", "attacker"):
        mesh.add_tenant(tenant)
        made[tenant] = mesh.log_in(tenant=tenant)
    return made


@pytest.fixture(scope="module")
def names(mesh: Mesh, tokens: dict[str, str]) -> dict[str, str]:
    """What both tenants have is made; the names that services give to the attacked one's, by field."""
    for tenant, own in _OWN.items():
        _fill(mesh, tokens[tenant], own)
    _fill(mesh, tokens["attacked"], _NAMED)
    unknown = {"readings": [{"deviceId": _NAMED, "numbers": {"unknown": 1}}]}
    with _client(mesh, tokens["attacked"]) as client:
        backfill = client.post("/v1/backfills", json=_DAY).raise_for_status().json()["id"]
        for _ in range(3):
            assert client.post("/v1/telemetry", json=unknown).is_success
        letter = client.get("/v1/deadLetters").raise_for_status().json()["deadLetters"][0]["id"]
    return {"backfill_id": backfill, "ids of letters": letter}


def _client(mesh: Mesh, token: str) -> httpx.Client:
    return httpx.Client(base_url=mesh.url, headers=dict(bearer(token)), timeout=30)


def _fill(mesh: Mesh, token: str, name: str) -> None:
    metrics = [{"name": "level", "kind": "VALUE_KIND_DOUBLE"}]
    gateway = {"id": name, "deviceTypeId": name, "role": "DEVICE_ROLE_GATEWAY", "assetId": name}
    child = {"id": f"{name}-child", "deviceTypeId": name, "role": "DEVICE_ROLE_CHILD", "parentId": name}
    with _client(mesh, token) as client:
        for path, body in (
            ("/v1/assetTypes", {"id": name}),
            ("/v1/assets", {"id": name, "assetTypeId": name}),
            ("/v1/deviceTypes", {"id": name, "metrics": metrics}),
            ("/v1/devices", gateway),
            ("/v1/devices", child),
            ("/v1/roles", {"id": name, "permissions": ["twin:read"]}),
            ("/v1/users", {"user": {"username": name, "role": name}}),
            ("/v1/telemetry", {"readings": [{"deviceId": name, "numbers": {"level": 1}}]}),
            ("/v1/events", {"events": [{"assetId": name, "type": "opened"}]}),
            ("/v1/deviceCertificates", {"deviceId": name, "csr": csr(new_key())}),
        ):
            answer = client.post(path, json=body)
            assert answer.is_success, (path, answer.text)


class _Asker:
    """Calls rpcs by what the descriptors say of them."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._fresh = (f"fresh-{number}" for number in count())

    async def answer(self, rpc: Rpc, path: tuple[str, ...], name: str, token: str, own: str) -> str:
        """Return all that a call tells, without what differs between two calls anyhow."""
        message_class, fresh = GetMessageClass(request_descriptor(rpc)), next(self._fresh)
        request: Message = message_class()
        if rpc.name != "ReplayDeadLetters" or path == ("backfill_id",):
            json_format.ParseDict(_BASES.get(rpc.name, {}), request)
        _set(request, path, name)
        text = json_format.MessageToJson(request).replace(f'"{_FRESH}"', f'"{fresh}"').replace(OWN, own)
        told = await self._told(rpc, json_format.Parse(text, message_class()).SerializeToString(), token)
        # Names, what is counted or drawn, times.
        drawn = r"'id': '[^']+'|tm[ks]_\w+|\b[0-9a-f-]{20,}\b|\S+Z\b|\d+\.\d+"
        return re.sub(rf"\b({re.escape(name)}|{fresh})\b|{drawn}", "X", told)

    async def _told(self, rpc: Rpc, request: bytes, token: str) -> str:
        answer_class = GetMessageClass(response_descriptor(rpc))
        told = ""
        # A single answer is a stream of one.
        call: Any = self._channel.unary_stream(rpc.path, response_deserializer=answer_class.FromString)
        opened = call(request, metadata=bearer(token))
        try:
            while (message := await opened.read()) is not grpc.aio.EOF:
                told += _text(message)
                if "snapshotEnd" in told:
                    break
            opened.cancel()
        except grpc.aio.AioRpcError as error:
            return f"{error.code()} {error.details()}"
        return told


def _text(message: Message) -> str:
    told: dict[str, Any] = json_format.MessageToDict(message)
    # Bound to the question, which has the name in it.
    told.pop("nextPageToken", None)
    return str(told) if "data" not in told else message.data.decode()  # type: ignore[attr-defined]


def _set(message: Any, path: tuple[str, ...], name: str) -> None:
    for step in path[:-1]:
        value = getattr(message, step)
        if message.DESCRIPTOR.fields_by_name[step].is_repeated:
            message = value[0] if value else value.add()
        else:
            message = value
    if message.DESCRIPTOR.fields_by_name[path[-1]].is_repeated:
        getattr(message, path[-1])[:] = [name]
    else:
        setattr(message, path[-1], name)


@pytest.fixture
async def asker(mesh: Mesh) -> AsyncIterator[_Asker]:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        yield _Asker(channel)


async def test_another_tenants_name_in_a_request_is_answered_like_an_absent_one(
    asker: _Asker, tokens: dict[str, str], names: dict[str, str]
) -> None:
    told: list[str] = []
    for rpc, path in _references():
        is_of_letters = path == ("ids",) and "DeadLetters" in rpc.name
        name = names.get("ids of letters" if is_of_letters else path[-1], _NAMED)
        absent = _ABSENT if name == _NAMED else f"{name[:-2]}{'00' if name[-2:] != '00' else '11'}"
        what = f"{rpc.name} {'.'.join(path)}"
        theirs, nobodys = [
            await asker.answer(rpc, path, each, tokens["attacker"], _OWN["attacker"])
            for each in (name, absent)
        ]
        if theirs != nobodys:
            told.append(f"{what}: {theirs}\n    {nobodys}")
        # Whose it is, is told something else: the request gets as far as the name.
        own, nobodys = [
            await asker.answer(rpc, path, each, tokens["attacked"], _OWN["attacked"])
            for each in (name, absent)
        ]
        if (own == nobodys) != ((rpc.name, path[-1]) in _ALIKE_FOR_ALL):
            told.append(f"{what} tells its owner: {own}\n    {nobodys}")
    assert not told, "\n".join(told)
