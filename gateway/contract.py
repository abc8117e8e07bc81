"""What the gateway reads from the contract: services, rpcs, who may call them, their JSON paths."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

import twinmesh
from meshkit.identity import SERVICE_PERMISSIONS
from meshkit.policy import PUBLIC
from twinmesh.auth.v1 import permission_pb2

# The descriptor set that is generated beside the Python code.
CONTRACT = Path(next(iter(twinmesh.__path__))).with_name("twinmesh.binpb")
_OWN_PACKAGES = "twinmesh."
_HTTP_BODY = ".google.api.HttpBody"
_IDEMPOTENT = (
    descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS,
    descriptor_pb2.MethodOptions.IDEMPOTENT,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpBinding:
    """A JSON form of an rpc: `GET`, `/v1/devices/{id}`.

    Attributes:
        method: of HTTP.
        template: of paths; names in braces are paths of the request's fields.
        body: the field that the body is, `*` when it is all that the path leaves, "" without one.
    """

    method: str
    template: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """One rpc of the contract."""

    package: str
    service: str
    name: str
    permission: str
    keeps_to_scope: bool
    bindings: tuple[HttpBinding, ...]
    client_streaming: bool
    server_streaming: bool
    idempotent: bool
    answers_files: bool

    @property
    def path(self) -> str:
        """Return its gRPC path, `/twinmesh.asset.v1.DeviceService/GetDevice`."""
        return f"/{self.service}/{self.name}"

    @property
    def streaming(self) -> bool:
        """Tell whether it may last."""
        return self.client_streaming or self.server_streaming

    @property
    def is_public(self) -> bool:
        """Tell whether it is called without a credential."""
        return self.permission == PUBLIC


@dataclass(frozen=True, slots=True)
class Contract:
    """The rpcs that are reachable through the gateway, in the contract's order."""

    rpcs: tuple[Rpc, ...]

    @property
    def services(self) -> tuple[str, ...]:
        """Return the full names of the reachable services."""
        return tuple(dict.fromkeys(rpc.service for rpc in self.rpcs))

    @property
    def public(self) -> tuple[Rpc, ...]:
        """Return the rpcs that need no credential."""
        return tuple(rpc for rpc in self.rpcs if rpc.is_public)

    @property
    def streamed(self) -> tuple[Rpc, ...]:
        """Return the rpcs that are asked once and answer many messages; a file in pieces is none of them."""
        return tuple(
            rpc
            for rpc in self.rpcs
            if rpc.server_streaming and not rpc.client_streaming and not rpc.answers_files
        )

    def rpc(self, path: str) -> Rpc:
        """Return the rpc with this gRPC path.

        Raises:
            KeyError: no reachable service has it.
        """
        for rpc in self.rpcs:
            if rpc.path == path:
                return rpc
        raise KeyError(path)


def read_files(path: Path) -> descriptor_pb2.FileDescriptorSet:
    """Read a serialized FileDescriptorSet.

    Raises:
        OSError: it cannot be read.
        google.protobuf.message.DecodeError: it is no descriptor set.
    """
    return descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())


def pool_of(files: descriptor_pb2.FileDescriptorSet) -> descriptor_pool.DescriptorPool:
    """Return a pool of its own with the descriptors of a set, which names files after those they import."""
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return pool


def read_rpcs(path: Path) -> tuple[Rpc, ...]:
    """Read all rpcs of a serialized FileDescriptorSet, in the contract's order.

    Raises:
        OSError: it cannot be read.
        google.protobuf.message.DecodeError: it is no descriptor set.
    """
    return tuple(
        _rpc(file.package, service.name, method)
        for file in read_files(path).file
        if file.package.startswith(_OWN_PACKAGES)
        for service in file.service
        for method in service.method
    )


def read_contract(path: Path) -> Contract:
    """Read a serialized FileDescriptorSet.

    A service all of whose rpcs need a permission that only services hold is for the
    inside of the mesh and is left out.

    Raises:
        OSError: it cannot be read.
        google.protobuf.message.DecodeError: it is no descriptor set.
    """
    rpcs = read_rpcs(path)
    reachable = {rpc.service for rpc in rpcs if rpc.permission not in SERVICE_PERMISSIONS}
    return Contract(tuple(rpc for rpc in rpcs if rpc.service in reachable))


def _rpc(package: str, service: str, method: descriptor_pb2.MethodDescriptorProto) -> Rpc:
    return Rpc(
        package=package,
        service=f"{package}.{service}",
        name=method.name,
        permission=method.options.Extensions[permission_pb2.permission],
        keeps_to_scope=method.options.Extensions[permission_pb2.keeps_to_scope],
        bindings=tuple(_bindings(method.options.Extensions[annotations_pb2.http])),
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
        idempotent=method.options.idempotency_level in _IDEMPOTENT,
        # One of many pieces, that is: what fits into one message is no file.
        answers_files=method.output_type == _HTTP_BODY and method.server_streaming,
    )


def _bindings(rule: http_pb2.HttpRule) -> Iterator[HttpBinding]:
    verb = rule.WhichOneof("pattern")
    if verb == "custom":
        yield HttpBinding(method=rule.custom.kind, template=rule.custom.path, body=rule.body)
    elif verb is not None:
        yield HttpBinding(method=verb.upper(), template=getattr(rule, verb), body=rule.body)
    for additional in rule.additional_bindings:
        yield from _bindings(additional)
