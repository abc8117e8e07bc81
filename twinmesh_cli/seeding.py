"""What services' own programs do to their stores: tenant `demo`, its first user, sample data, keys."""

import asyncio
import json
import os
import secrets as random_secrets
from dataclasses import dataclass
from typing import Any

from meshkit import secrets
from meshkit.embedded import PartFailedError
from meshkit.identity import SYSTEM_TENANT
from twinmesh_cli.database import role_url
from twinmesh_cli.service import module_command, service_environment
from twinmesh_cli.settings import LauncherSettings

PASSWORD_BYTES = 12
_SECONDS = 60.0
_SIMULATOR_KEY = "simulated fleet"
_SIMULATOR_PERMISSIONS = "telemetry:write,device:read,device:write,device_type:read,device_type:write"


@dataclass(frozen=True)
class Seeded:
    """What was done.

    Attributes:
        user_created: whether the user is new.
        password: the new user's generated one, None if it was given or is old.
        tenant_deleted: an operator deleted the tenant, so that nothing was made.
    """

    user_created: bool
    password: str | None
    tenant_deleted: bool = False


async def seed(settings: LauncherSettings, *, admin_url: str, mesh_secret: str) -> Seeded:
    """Makes what is missing; what is there stays as it is, and a deleted tenant stays deleted.

    A generated password exists in this answer and, hashed, in the database, nowhere else.

    Raises:
        PartFailedError: a step failed.
    """
    given = settings.admin_password.get_secret_value() if settings.admin_password else None
    password = given or random_secrets.token_urlsafe(PASSWORD_BYTES)
    root = secrets.decode_root(mesh_secret)

    def variables(role: str) -> dict[str, str]:
        return {
            "TWINMESH_SERVICE_DATABASE_URL": role_url(admin_url, root=root, role=role),
            "TWINMESH_MESH_SECRET": mesh_secret,
            "TWINMESH_LOG_LEVEL": settings.log_level,
        }

    user = {**variables("twinmesh_auth"), "TWINMESH_ADMIN_PASSWORD": password}
    bootstrap = _last_object(await _run("auth_svc.bootstrap", variables=user))
    if bootstrap.get("tenant_deleted"):
        return Seeded(user_created=False, password=None, tenant_deleted=True)
    await _run("asset_svc.seed", "--tenant", "demo", variables=variables("twinmesh_asset"))
    created = bool(bootstrap.get("created"))
    return Seeded(user_created=created, password=password if created and given is None else None)


async def make_operator(
    settings: LauncherSettings, *, admin_url: str, mesh_secret: str, password: str
) -> bool:
    """Make the first operator of the installation; False when there is one, whose password stays.

    Raises:
        PartFailedError: auth_svc's program failed.
    """
    root = secrets.decode_root(mesh_secret)
    variables = {
        "TWINMESH_SERVICE_DATABASE_URL": role_url(admin_url, root=root, role="twinmesh_auth"),
        "TWINMESH_TENANT": SYSTEM_TENANT,
        "TWINMESH_ADMIN_PASSWORD": password,
        "TWINMESH_LOG_LEVEL": settings.log_level,
    }
    return bool(_last_object(await _run("auth_svc.bootstrap", variables=variables)).get("created"))


async def issue_simulator_key(settings: LauncherSettings, *, admin_url: str, mesh_secret: str) -> str:
    """Make an API key of tenant `demo` for the simulated fleet; the one of the last start is revoked.

    It exists in this answer and, hashed, in the database, nowhere else.

    Raises:
        PartFailedError: auth_svc's program failed.
    """
    root = secrets.decode_root(mesh_secret)
    variables = {
        "TWINMESH_SERVICE_DATABASE_URL": role_url(admin_url, root=root, role="twinmesh_auth"),
        "TWINMESH_KEY_NAME": _SIMULATOR_KEY,
        "TWINMESH_KEY_PERMISSIONS": _SIMULATOR_PERMISSIONS,
        "TWINMESH_LOG_LEVEL": settings.log_level,
    }
    issued = _last_object(await _run("auth_svc.issue_key", variables=variables))
    return str(issued["secret"])


async def rotate_signing_keys(
    settings: LauncherSettings, *, admin_url: str, mesh_secret: str
) -> dict[str, Any]:
    """Make the key that signs access tokens next; returns its `kid` and `activate_time`.

    Raises:
        PartFailedError: auth_svc's program failed.
    """
    root = secrets.decode_root(mesh_secret)
    variables = {
        "TWINMESH_SERVICE_DATABASE_URL": role_url(admin_url, root=root, role="twinmesh_auth"),
        "TWINMESH_MESH_SECRET": mesh_secret,
        "TWINMESH_LOG_LEVEL": settings.log_level,
    }
    return _last_object(await _run("auth_svc.rotate_keys", variables=variables))


async def _run(module: str, *arguments: str, variables: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *module_command(module, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=service_environment(variables),
    )
    try:
        async with asyncio.timeout(_SECONDS):
            output, errors = await process.communicate()
    except TimeoutError:
        raise PartFailedError(module, f"did not finish within {_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        tail = os.linesep.join(errors.decode(errors="replace").splitlines()[-20:])
        raise PartFailedError(module, f"ended with code {process.returncode}", log_tail=tail)
    return output.decode()


def _last_object(output: str) -> dict[str, Any]:
    lines = output.strip().splitlines()
    answer = json.loads(lines[-1]) if lines else {}
    return answer if isinstance(answer, dict) else {}
