"""Makes a tenant and its administrator: `python -m auth_svc.bootstrap`.

That of tenant `system` is the first operator of the installation.

Prints {"created": true}, or {"created": false} when the user exists; an existing
password is never changed.
"""

import asyncio
import json
import sys

from pydantic import Field, SecretStr

from auth_svc.opaque_tokens import TENANT_PATTERN
from auth_svc.passwords import hash_password
from auth_svc.roles import Role
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


async def bootstrap(settings: BootstrapSettings, *, clock: Clock) -> bool:
    """Make the tenant and its administrator where absent; tells whether it made the latter."""
    async with db.pool(
        settings.service_database_url.get_secret_value(), application="auth_bootstrap", max_size=1
    ) as pool:
        users = UserStore(pool=pool)
        if await users.find(settings.tenant, USERNAME) is not None:
            return False
        password_hash = hash_password(settings.admin_password.get_secret_value())
        role = Role.INSTALLATION_ADMIN if settings.tenant == SYSTEM_TENANT else Role.ADMIN
        return await users.create(settings.tenant, USERNAME, password_hash, role, clock.now_us())


if __name__ == "__main__":
    settings = read_settings("auth_svc.bootstrap", BootstrapSettings)
    created = asyncio.run(bootstrap(settings, clock=SystemClock()))
    sys.stdout.write(json.dumps({"created": created}) + "\n")
