"""Issues an API key to a program of the launcher's: `python -m auth_svc.issue_key`.

Prints {"secret": …}, told this once. What was issued under the same name before is
revoked: each start of the program has a key of its own. In a deleted tenant none is issued.
"""

import asyncio
import json
import sys

from pydantic import Field, SecretStr, field_validator

from auth_svc.api_keys import ApiKey
from auth_svc.opaque_tokens import TENANT_PATTERN, OpaqueToken, Prefix, new_id, new_secret
from auth_svc.revocations import kept_until
from auth_svc.roles import Role, permissions_of
from auth_svc.stores.api_keys import ApiKeyStore
from auth_svc.stores.tenants import TenantStore
from meshkit import db
from meshkit.clock import Clock, SystemClock
from meshkit.config import Settings
from meshkit.errors import DomainError, FailedPrecondition
from meshkit.runtime import read_settings
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

# No user has such a name, so nobody's own keys are revoked here.
_CREATOR = "twinmesh up"
_PAGE = 1000


class IssueSettings(Settings):
    """What issuing a key needs."""

    service_database_url: SecretStr = Field(description="PostgreSQL URL with role twinmesh_auth.")
    tenant: str = Field("demo", pattern=f"^{TENANT_PATTERN}$", description="Tenant to issue it in.")
    key_name: str = Field(min_length=1, max_length=256, description="Display name of the key.")
    key_permissions: str = Field(description="What it may do, commas between permissions.")

    @field_validator("key_permissions")
    @classmethod
    def _grantable(cls, value: str) -> str:
        unknown = set(value.split(",")) - permissions_of(Role.ADMIN)
        if unknown:
            raise ValueError(f"there are no permissions {', '.join(sorted(unknown))}")
        return value


async def issue_key(settings: IssueSettings, *, clock: Clock) -> str:
    """Revoke the keys of this name that were issued before; return the secret of a new one.

    Raises:
        FailedPrecondition: TENANT_DELETED.
    """
    token = OpaqueToken(Prefix.API_KEY, settings.tenant, new_id(), new_secret())
    api_key = ApiKey(
        tenant=settings.tenant,
        id=token.id,
        display_name=settings.key_name,
        permissions=frozenset(settings.key_permissions.split(",")),
        creator=_CREATOR,
        create_us=clock.now_us(),
        expire_us=None,
    )
    async with db.pool(
        settings.service_database_url.get_secret_value(), application="auth_issue_key", max_size=1
    ) as pool:
        if await TenantStore(pool=pool).is_deleted(settings.tenant):
            raise FailedPrecondition(
                f"tenant {settings.tenant!r} is deleted; no key is issued in it",
                reason=ErrorReason.ERROR_REASON_TENANT_DELETED,
            )
        store = ApiKeyStore(pool=pool)
        await _revoke_earlier(store, settings, clock)
        await store.create(api_key, token.hash)
    return token.text


async def _revoke_earlier(store: ApiKeyStore, settings: IssueSettings, clock: Clock) -> None:
    after = ""
    while page := await store.page(settings.tenant, after=after, limit=_PAGE):
        for key in page:
            if (key.creator, key.display_name) == (_CREATOR, settings.key_name):
                await store.revoke(settings.tenant, key.id, until=kept_until(clock.now_us()))
        after = page[-1].id


if __name__ == "__main__":
    settings = read_settings("auth_svc.issue_key", IssueSettings)
    try:
        secret = asyncio.run(issue_key(settings, clock=SystemClock()))
    except DomainError as error:
        sys.exit(f"auth_svc.issue_key: {error.message}")
    sys.stdout.write(json.dumps({"secret": secret}) + "\n")
