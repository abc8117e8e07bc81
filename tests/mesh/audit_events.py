"""The account of a mesh, asked for by JSON."""

from typing import Any

import httpx

from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh, eventually


def events(mesh: Mesh, token: str, **question: Any) -> list[dict[str, Any]]:
    """Return a page of the events of a token's tenant, the newest first."""
    headers = dict(bearer(token))
    answer = httpx.get(f"{mesh.url}/v1/auditEvents", params=question, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["auditEvents"]
    return found


def event(mesh: Mesh, token: str, trace_id: str, **question: Any) -> dict[str, Any]:
    """Wait for the only event of a trace."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        found[:] = [each for each in events(mesh, token, **question) if each["traceId"] == trace_id]
        return bool(found)

    eventually(is_there, f"the audit has trace {trace_id}")
    (only,) = found
    return only
