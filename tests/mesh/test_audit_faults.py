"""The account is whole although auth_svc was away for a while."""

import signal
from typing import Any

import httpx

from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh, eventually
from tests.mesh.audit_metrics import lost_events


def events(mesh: Mesh, headers: Any, **question: Any) -> list[dict[str, Any]]:
    answer = httpx.get(f"{mesh.url}/v1/auditEvents", params=question, headers=headers, timeout=30)
    if answer.status_code == 503:  # the gateway takes a while to believe in a process that did not answer
        return []
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()["auditEvents"]
    return found


async def test_while_auth_svc_stands_still_nothing_is_lost(fragile_mesh: Mesh) -> None:
    mesh = fragile_mesh
    token = mesh.log_in()
    headers = dict(bearer(token))
    async with mesh.client(token) as admin:
        # Whoever stands still for no longer than this asks for no keys meanwhile.
        assert (await admin.get("/v1/devices/none-0")).status_code == 404
        mesh.signal("auth_svc", signal.SIGSTOP)
        try:
            traces = [
                (await admin.get(f"/v1/devices/none-{number}")).headers["x-trace-id"] for number in range(200)
            ]
            # The gateway keeps those that it refuses itself.
            refused = [
                (await admin.get(f"/v1/nothing-{number}")).headers["x-trace-id"] for number in range(200)
            ]
        finally:
            mesh.signal("auth_svc", signal.SIGCONT)

    def all_there() -> bool:
        found = events(mesh, headers, rpc="/twinmesh.asset.v1.DeviceService/GetDevice", pageSize=1000)
        return [each["traceId"] for each in found if each["traceId"] in set(traces)] == traces[::-1]

    eventually(all_there, "each call is there, once, in its order")
    assert lost_events(mesh)["asset_svc"] == 0

    def all_refused_there() -> bool:
        found = events(mesh, headers, codes="NOT_FOUND", pageSize=1000)
        told = [each["traceId"] for each in found if each["recorder"] == "gateway"]
        return sorted(told) == sorted(refused)

    eventually(all_refused_there, "each request that the gateway refused is there, once")
