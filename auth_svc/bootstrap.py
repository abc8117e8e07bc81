"""Makes a tenant and its administrator: `python -m auth_svc.bootstrap`.

That of tenant `system` is the first operator of the installation.

Prints {"created": …, "tenant_deleted": …}: whether it made the user, whose password it
never changes when there is one; and whether an operator has deleted the tenant, in which
nothing is made again.
"""

import asyncio
import json
import sys
from typing import NamedTuple

from pydantic import Field, SecretStr

from auth_svc.opaque_tokens import TENANT_PATTERN
from auth_svc.passwords import hash_password
from auth_svc.roles import Role
from auth_svc.stores.tenants import TenantStore
from auth_svc.stores.users import UserStore
from meshkit import db
from meshkit.clock import Clock, SystemClock
from meshkit.config import Settings
from meshkit.identity import SYSTEM_TENANT
from meshkit.runtime import read_settings

USERNAME = "admin"


class BootstrapSettings(Settings):
    """What the bootstrap needs."""

    service_database_url: SecretStr = Field(description="PostgreSQL URL with role twinmesh_auth.")
    tenant: str = Field("demo", pattern=f"^{TENANT_PATTERN}$", description="Tenant to make.")
    admin_password: SecretStr = Field(
        min_length=8, max_length=1024, description=f"Password of user {USERNAME}, if that is new."
    )


class Bootstrapped(NamedTuple):
    """Whether the administrator was made, and whether the tenant is deleted, which none is made in."""

    created: bool
    tenant_deleted: bool


async def bootstrap(settings: BootstrapSettings, *, clock: Clock) -> Bootstrapped:
    """Make the tenant and its administrator where absent, unless the tenant is deleted."""
    async with db.pool(
        settings.service_database_url.get_secret_value(), application="auth_bootstrap", max_size=1
    ) as pool:
        if await TenantStore(pool=pool).is_deleted(settings.tenant):
            return Bootstrapped(created=False, tenant_deleted=True)
        users = UserStore(pool=pool)
        if await users.find(settings.tenant, USERNAME) is not None:
            return Bootstrapped(created=False, tenant_deleted=False)
        password_hash = hash_password(settings.admin_password.get_secret_value())
        role = Role.INSTALLATION_ADMIN if settings.tenant == SYSTEM_TENANT else Role.ADMIN
        created = await users.create(settings.tenant, USERNAME, password_hash, role, clock.now_us())
        return Bootstrapped(created=created, tenant_deleted=False)


if __name__ == "__main__":
    settings = read_settings("auth_svc.bootstrap", BootstrapSettings)
    done = asyncio.run(bootstrap(settings, clock=SystemClock()))
    sys.stdout.write(json.dumps(done._asdict()) + "\n")
