"""The document: every JSON form of every rpc that the gateway takes."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from gateway.contract import Contract, HttpBinding, Rpc, pool_of, read_contract, read_files
from gateway.openapi import errors, rules
from gateway.openapi.comments import comments_of
from gateway.openapi.rules import Schema
from gateway.openapi.schemas import PLAIN, Schemas
from meshkit.policy import AUTHENTICATED, PUBLIC

_SCHEME = "bearerAuth"
_JSON = "application/json"
_EVENTS = "text/event-stream"
_HTTP_BODY = "google.api.HttpBody"
# Files are made by the services; the contract says of which kind in its comments only.
_FILES = {
    "/twinmesh.auth.v1.AuditEventService/ExportAuditEvents": ("text/csv", "application/jsonl"),
    "/twinmesh.auth.v1.DeviceCertificateService/GetCertificateRevocationList": (
        "application/pkix-crl",
        "application/x-pem-file",
    ),
    "/twinmesh.twin.v1.HistoryService/ExportHistory": (
        "text/csv",
        "application/vnd.apache.parquet",
        "application/vnd.apache.arrow.stream",
    ),
}
_ABOUT = """Telemetry, digital twins, history, assets and access. Generated from the contract.

Unknown members of a body are ignored, unknown query parameters refused. 64-bit integers are strings.
Members of answers are printed also when they have their default, except messages and optional
members that are absent."""
_ABOUT_TOKENS = """An access token or an API key. The names of a requirement are the permissions that
the caller must hold. API keys may sign requests instead, and devices show certificates at a port of
their own."""


def document(descriptor_set: Path) -> Schema:
    """Return the OpenAPI document of a serialized FileDescriptorSet.

    Descriptions are the contract's comments, if the set has them.

    Raises:
        OSError: it cannot be read.
        KeyError: a message, or a file, is of a kind that has no description here.
    """
    files = read_files(descriptor_set)
    comments = comments_of(files)
    pool = pool_of(files)
    contract = read_contract(descriptor_set)
    schemas = Schemas(comments)
    paths = _paths(contract, pool, schemas)
    errors.add_schemas(schemas, pool)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Twinmesh", "version": "v1", "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": _tags(contract, comments),
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "responses": errors.responses(pool, comments),
            "securitySchemes": {
                _SCHEME: {"type": "http", "scheme": "bearer", "description": _ABOUT_TOKENS},
            },
        },
    }


def path_of(binding: HttpBinding) -> str:
    """Return a binding's path as the document has it: parameters are named by their last field.

    `/v1/devices/{id}` and `/v1/devices/{device.id}` are one path.
    """
    return re.sub(r"\{([^}]*)\}", lambda found: f"{{{_parameter_name(found[1])}}}", binding.template)


def _parameter_name(field_path: str) -> str:
    first, *more = field_path.rpartition(".")[2].split("_")
    return first + "".join(word.capitalize() for word in more)


def _tags(contract: Contract, comments: Mapping[str, str]) -> list[Schema]:
    bound = dict.fromkeys(rpc.service for rpc in contract.rpcs if rpc.bindings)
    return [{"name": _short(name), "description": comments.get(name, "")} for name in bound]


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _paths(contract: Contract, pool: DescriptorPool, schemas: Schemas) -> dict[str, Schema]:
    paths: dict[str, Schema] = {}
    for rpc in contract.rpcs:
        method = pool.FindMethodByName(f"{rpc.service}.{rpc.name}")
        for number, binding in enumerate(rpc.bindings):
            operation = _Operation(rpc=rpc, method=method, binding=binding, schemas=schemas)
            name = f"{_short(rpc.service)}_{rpc.name}" + (f"_{number + 1}" if number else "")
            paths.setdefault(path_of(binding), {})[binding.method.lower()] = operation.described(name)
    return paths


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """One JSON form of an rpc."""

    rpc: Rpc
    method: MethodDescriptor
    binding: HttpBinding
    schemas: Schemas

    def described(self, name: str) -> Schema:
        described: Schema = {
            "operationId": name,
            "tags": [_short(self.rpc.service)],
            "description": self.schemas.comments.get(f"{self.rpc.service}.{self.rpc.name}", ""),
            "security": self._security(),
        }
        if parameters := [*self._path_parameters(), *self._query_parameters()]:
            described["parameters"] = parameters
        if self.binding.body:
            described["requestBody"] = self._body()
        return described | {"responses": self._responses()}

    def _security(self) -> list[Schema]:
        if self.rpc.permission == PUBLIC:
            return []
        return [{_SCHEME: [] if self.rpc.permission == AUTHENTICATED else [self.rpc.permission]}]

    @property
    def _bound(self) -> list[str]:
        """Return the paths of the fields that the path holds."""
        return re.findall(r"\{([^}]*)\}", self.binding.template)

    def _path_parameters(self) -> Iterator[Schema]:
        for bound in self._bound:
            message = self.method.input_type
            *outer, last = bound.split(".")
            for name in outer:
                message = cast("Descriptor", message.fields_by_name[name].message_type)
            field = message.fields_by_name[last]
            yield self._parameter(field, "path", _parameter_name(bound), required=True)

    def _query_parameters(self) -> Iterator[Schema]:
        if self.binding.body == "*":
            return
        elsewhere = {*self._bound, self.binding.body}
        yield from self._fields_in_query(self.method.input_type, elsewhere)

    def _fields_in_query(
        self, message: Descriptor, elsewhere: Collection[str] = (), *, prefix: str = ""
    ) -> Iterator[Schema]:
        """Yield a parameter for each field that the transcoder takes from a query, nested ones by `a.b`."""
        required = rules.required_fields(message)
        for field in message.fields:
            kind = field.message_type
            if field.name in elsewhere:
                continue
            if kind is None or kind.full_name in PLAIN:
                needed = not prefix and field.name in required
                yield self._parameter(field, "query", f"{prefix}{field.json_name}", required=needed)
            elif not field.is_repeated:
                yield from self._fields_in_query(kind, prefix=f"{prefix}{field.json_name}.")

    def _parameter(self, field: FieldDescriptor, place: str, name: str, *, required: bool) -> Schema:
        schema = self.schemas.field(field)
        parameter: Schema = {"name": name, "in": place}
        if text := schema.pop("description", ""):
            parameter["description"] = text
        if required:
            parameter["required"] = True
        return parameter | {"schema": schema}

    def _body(self) -> Schema:
        request, bound = self.method.input_type, self._bound
        if self.binding.body == "*":
            inside, needed = request, bool(rules.required_fields(request) - set(bound))
            left_out = bound
        else:
            inside = cast("Descriptor", request.fields_by_name[self.binding.body].message_type)
            needed = True
            left_out = [path.removeprefix(f"{self.binding.body}.") for path in bound]
        schema = self.schemas.object(inside, without=left_out) if left_out else self.schemas.message(inside)
        return {"required": needed, "content": {_JSON: {"schema": schema}}}

    def _responses(self) -> Schema:
        statuses = set(errors.STATUSES)
        if self.binding.body:
            statuses.add(413)
        if self.binding.method != "GET":
            statuses.add(409)
        refused = {
            str(status): {"$ref": f"#/components/responses/{errors.response_name(status)}"}
            for status in sorted(statuses)
        }
        return {"200": self._success(), **refused}

    def _success(self) -> Schema:
        answer = self.method.output_type
        if answer.full_name == _HTTP_BODY:
            text = "A file, in one of these forms."
            return {"description": text, "content": {kind: {} for kind in _FILES[self.rpc.path]}}
        schema = self.schemas.message(answer)
        text = self.schemas.comments.get(answer.full_name, answer.name)
        if self.rpc.server_streaming:
            # OpenAPI 3.1 describes a stream as a whole only.
            events = {"type": "string", "contentMediaType": _EVENTS, "x-event-data": schema}
            text = f"Server-sent events, the data of each in JSON: {text}"
            return {"description": text, "content": {_EVENTS: {"schema": events}}}
        return {"description": text, "content": {_JSON: {"schema": schema}}}
