"""A tenant that is there to be attacked, and tokens of whoever may do the most to it."""

from collections.abc import Callable

import httpx

from auth_svc.access_tokens import AccessTokens, Grant
from auth_svc.roles import Role, permissions_of
from auth_svc.signing_keys import KeyRing
from gateway.contract import Rpc
from meshkit.clock import SystemClock
from meshkit.identity import INSTALLATION_PERMISSIONS, SYSTEM_TENANT, PrincipalKind
from meshkit.testing.mesh import Mesh


def attackers_tokens(mesh: Mesh, signing_keys: KeyRing, name: str) -> Callable[..., str]:
    """Make the tenant, with one of each thing, all of this name; return what makes tokens.

    A token is of whoever may call an rpc, each of a session of its own: the tenant's administrator, or
    an operator of the installation where only they may. One may end its session, or change its user.
    """
    mesh.add_tenant(name)
    tokens, clock = AccessTokens(signers=signing_keys, clock=SystemClock()), SystemClock()
    count = iter(range(2**31))

    def make(rpc: Rpc | None = None) -> str:
        is_operator = rpc is not None and rpc.permission in INSTALLATION_PERMISSIONS
        role = Role.INSTALLATION_ADMIN if is_operator else Role.ADMIN
        grant = Grant(
            tenant=SYSTEM_TENANT if is_operator else name,
            subject="attacker",
            kind=PrincipalKind.USER,
            permissions=permissions_of(role),
            credential_id=f"attack-{name}-{next(count)}",
            credential_expire_us=None,
            read_us=clock.now_us(),
            role=role,
        )
        return tokens.issue(grant, life_s=900)

    with httpx.Client(base_url=mesh.url, headers={"authorization": f"Bearer {make()}"}, timeout=30) as admin:
        fill(admin, name)
    return make


def fill(admin: httpx.Client, name: str) -> None:
    """Make one of each thing of this name, but those that are there."""
    metrics = [{"name": name, "kind": "VALUE_KIND_DOUBLE"}]
    for path, body in (
        ("/v1/deviceTypes", {"id": name, "metrics": metrics}),
        ("/v1/devices", {"id": name, "deviceTypeId": name}),
        ("/v1/telemetry", {"readings": [{"deviceId": name, "numbers": {name: 1}}]}),
        ("/v1/roles", {"id": name, "permissions": ["twin:read"]}),
        ("/v1/users", {"user": {"username": name, "role": "viewer"}}),
    ):
        made = admin.post(path, json=body)
        assert made.status_code in {httpx.codes.OK, httpx.codes.CONFLICT}, made.text
