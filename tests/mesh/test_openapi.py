"""What the OpenAPI document promises is what the gateway answers: schemathesis drives every operation.

Requests are drawn from the document, most of them as it wants them; tests/mesh/test_fuzzed_requests.py
draws what no document allows. `make soak` draws many more.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from auth_svc.signing_keys import KeyRing
from gateway.contract import CONTRACT, Rpc, read_contract
from gateway.openapi.document import path_of
from meshkit.identity import INSTALLATION_PERMISSIONS
from meshkit.testing.mesh import Mesh
from tests.mesh.attacked_tenant import attackers_tokens
from tests.mesh.stream_site import SOAK

_DOCUMENT = json.loads((CONTRACT.parent / "openapi/twinmesh.json").read_text(encoding="utf-8"))
_RPCS = {
    f"{binding.method} {path_of(binding)}": rpc
    for rpc in read_contract(CONTRACT).rpcs
    for binding in rpc.bindings
}
# It never ends.
_LEFT_OUT = {"GET /v1/twins:watch"}
# What is deleted is missed by those that come later.
_ORDER = ("GET", "POST", "PATCH", "DELETE")
_LABELS = sorted(_RPCS.keys() - _LEFT_OUT, key=lambda label: (_ORDER.index(label.partition(" ")[0]), label))
# The tenant, and the name of everything that it has.
_TENANT = "described"
_QUERIES: Mapping[str, Mapping[str, Any]] = {
    "GET /v1/auditEvents:export": {"format": "EXPORT_FORMAT_JSON_LINES", "endTime": "1999-01-01T00:00:00Z"},
    "GET /v1/history:export": {"ids": [_TENANT], "format": "EXPORT_FORMAT_PARQUET"},
    "GET /v1/history:query": {"ids": [_TENANT]},
    "GET /v1/receipts": {"requestId": _TENANT},
}
# All but things that the tenant has none of, or whose names are not its own to choose.
_FOUND = [
    label
    for label in _LABELS
    if label.startswith("GET ")
    and ("{" not in label or re.match(r"GET /v1/(devices|deviceTypes|roles|users|twins)/", label))
]
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
_TIMEOUT_S = 60
# Of each operation, of which there are 89: few in a common run.
_counted = settings(max_examples=500) if SOAK else settings(max_examples=8)


@dataclass(frozen=True)
class Drive:
    """Sends requests as whoever may do the most, and compares the answers with the document.

    Attributes:
        url: of the gateway.
        token: makes tokens.
        operations: of the document, by method and path.
    """

    url: str
    token: Callable[[Rpc], str]
    operations: Mapping[str, Any]

    def __call__(self, rpc: Rpc, case: Any) -> Any:
        """Return the answer, which is as the document says."""
        headers = {"authorization": f"Bearer {self.token(rpc)}"}
        answer = case.call(base_url=self.url, headers=headers, timeout=_TIMEOUT_S)
        case.validate_response(answer, checks=_CHECKS)
        return answer


@pytest.fixture(scope="module")
def drive(mesh: Mesh, signing_keys: KeyRing) -> Drive:
    found: list[Any] = list(schemathesis.openapi.from_dict(_DOCUMENT).get_all_operations())
    token = attackers_tokens(mesh, signing_keys, _TENANT)
    return Drive(mesh.url, token, {each.ok().label: each.ok() for each in found})


@st.composite
def _cases(draw: st.DrawFn, operation: Any, rpc: Rpc) -> Any:
    """Requests to an operation; some name what there is, others are not as the document wants them."""
    wanted = draw(st.sampled_from(("valid", "valid", "existing", "existing", "invalid")))
    modes = schemathesis.GenerationMode
    mode = modes.NEGATIVE if wanted == "invalid" else modes.POSITIVE
    case = draw(operation.as_strategy(generation_mode=mode))
    # A suspended tenant would answer nothing but that.
    if wanted == "existing" and rpc.permission not in INSTALLATION_PERMISSIONS:
        case.path_parameters = dict.fromkeys(case.path_parameters, _TENANT)
    return case


@pytest.mark.parametrize("label", _FOUND)
def test_what_there_is_is_answered_as_the_document_says(drive: Drive, label: str) -> None:
    """Not only refusals are compared with the document."""
    parameters = dict.fromkeys(re.findall(r"\{(\w+)\}", label), _TENANT)
    case = drive.operations[label].Case(path_parameters=parameters, query=dict(_QUERIES.get(label, {})))
    answer = drive(_RPCS[label], case)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("label", _LABELS)
@_counted
@given(data=st.data())
def test_an_operation_answers_as_the_document_says(drive: Drive, label: str, data: st.DataObject) -> None:
    rpc = _RPCS[label]
    drive(rpc, data.draw(_cases(drive.operations[label], rpc)))
