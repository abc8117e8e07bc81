"""Table auth.device_certificate."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import asyncpg

from auth_svc.device_certificates import DeviceCertificate
from auth_svc.device_credentials import IssuedCertificate
from auth_svc.stores.revocations import insert_revocations
from meshkit.ca.authority import Revoked
from meshkit.clock import from_datetime, to_datetime
from meshkit.db import tenant_transaction
from meshkit.revocations import RevocationKind

# Locked, so that one that is being revoked is revoked with what is renewed from it.
_LOCK_ORIGIN = """
SELECT revoke_time IS NULL
FROM auth.device_certificate
WHERE tenant_id = $1 AND id = $2
FOR NO KEY UPDATE
"""

_INSERT = """
INSERT INTO auth.device_certificate
    (tenant_id, id, device_id, uri, chain, fingerprint, renewed_from, creator, create_time, expire_time,
    device_create_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""

_GET = """
SELECT tenant_id, id, device_id, uri, chain, fingerprint, renewed_from, creator, create_time, expire_time,
    revoke_time, device_create_time
FROM auth.device_certificate
WHERE tenant_id = $1 AND id = $2
"""

_PAGE = """
SELECT tenant_id, id, device_id, uri, chain, fingerprint, renewed_from, creator, create_time, expire_time,
    revoke_time, device_create_time
FROM auth.device_certificate
WHERE tenant_id = $1 AND id > $2
ORDER BY id
LIMIT $3
"""

_PAGE_OF_DEVICE = """
SELECT tenant_id, id, device_id, uri, chain, fingerprint, renewed_from, creator, create_time, expire_time,
    revoke_time, device_create_time
FROM auth.device_certificate
WHERE tenant_id = $1 AND id > $2 AND device_id = $4
ORDER BY id
LIMIT $3
"""

_FIND = """
SELECT id, fingerprint, tenant.suspend_time IS NOT NULL AS tenant_suspended
FROM auth.device_certificate
JOIN auth.tenant USING (tenant_id)
WHERE tenant_id = $1 AND id = ANY ($2) AND revoke_time IS NULL AND expire_time > clock_timestamp()
"""

# By the database's clock, which all processes share. Waits for renewals that are under way, by their lock.
_REVOKE_ONE = """
UPDATE auth.device_certificate SET revoke_time = coalesce(revoke_time, clock_timestamp())
WHERE tenant_id = $1 AND id = $2
RETURNING revoke_time >= $3
"""

_REVOKE_RENEWED = """
UPDATE auth.device_certificate SET revoke_time = coalesce(revoke_time, clock_timestamp())
WHERE tenant_id = $1 AND renewed_from = ANY($2)
RETURNING id, revoke_time >= $3 AS is_new
"""

_REVOKE_OF_DEVICE = """
UPDATE auth.device_certificate SET revoke_time = clock_timestamp()
WHERE tenant_id = $1 AND device_id = $2 AND revoke_time IS NULL AND expire_time > clock_timestamp()
    AND (device_create_time IS NULL OR device_create_time <= $3)
RETURNING id
"""

_ON_CRL = "SELECT id, revoke_time FROM auth.device_certificates_on_crl()"


class DeviceCertificateStore:
    """Device certificates of all tenants, one tenant at a time.

    Args:
        pool: as role twinmesh_auth.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def create(self, certificate: DeviceCertificate) -> bool:
        """Store one; False when the one that it is renewed from was revoked, and nothing is stored."""
        async with tenant_transaction(self._pool, certificate.tenant) as connection:
            origin = certificate.renewed_from
            if origin is not None and not await connection.fetchval(_LOCK_ORIGIN, certificate.tenant, origin):
                return False
            await connection.execute(
                _INSERT,
                certificate.tenant,
                certificate.id,
                certificate.device_id,
                certificate.uri,
                certificate.chain,
                certificate.fingerprint,
                origin,
                certificate.creator,
                to_datetime(certificate.create_us),
                to_datetime(certificate.expire_us),
                _time(certificate.device_create_us),
            )
        return True

    async def get(self, tenant: str, certificate_id: str) -> DeviceCertificate | None:
        """Return one, None when there is none."""
        async with tenant_transaction(self._pool, tenant) as connection:
            row = await connection.fetchrow(_GET, tenant, certificate_id)
        return None if row is None else _certificate(row)

    async def page(
        self, tenant: str, *, device_id: str, after: str, limit: int
    ) -> Sequence[DeviceCertificate]:
        """Return certificates by id after an id; of one device unless that is ""."""
        async with tenant_transaction(self._pool, tenant) as connection:
            if device_id:
                rows = await connection.fetch(_PAGE_OF_DEVICE, tenant, after, limit, device_id)
            else:
                rows = await connection.fetch(_PAGE, tenant, after, limit)
        return [_certificate(row) for row in rows]

    async def find(self, tenant: str, certificate_id: str) -> IssuedCertificate | None:
        """Return a certificate, None when there is none, or it is revoked or has expired."""
        return (await self.find_all(tenant, [certificate_id])).get(certificate_id)

    async def find_all(self, tenant: str, certificate_ids: Sequence[str]) -> Mapping[str, IssuedCertificate]:
        """Return those of some certificates that are there, not revoked and not expired, by id."""
        async with tenant_transaction(self._pool, tenant) as connection:
            rows = await connection.fetch(_FIND, tenant, certificate_ids)
        return {row["id"]: IssuedCertificate(row["fingerprint"], row["tenant_suspended"]) for row in rows}

    async def revoke(self, tenant: str, certificate_id: str, *, until: datetime) -> Sequence[str] | None:
        """Revoke one and all that were renewed from it; return the ids, None when there is no such one.

        Until the given time tokens of theirs are held against the list of revocations.
        """
        async with tenant_transaction(self._pool, tenant) as connection:
            began = await connection.fetchval("SELECT clock_timestamp()")
            is_new = await connection.fetchval(_REVOKE_ONE, tenant, certificate_id, began)
            if is_new is None:
                return None
            revoked = [certificate_id] if is_new else []
            origins = [certificate_id]
            # One generation after the other: renewals are looked for once nobody adds any.
            while origins:
                rows = await connection.fetch(_REVOKE_RENEWED, tenant, origins, began)
                origins = [row["id"] for row in rows]
                revoked += [row["id"] for row in rows if row["is_new"]]
            await insert_revocations(
                connection, tenant=tenant, kind=RevocationKind.CERTIFICATE, ids=revoked, until=until
            )
        return revoked

    async def revoke_of_device(
        self, tenant: str, device_id: str, *, made_until: datetime, until: datetime
    ) -> Sequence[str]:
        """Revoke what was issued to a device that was made at a time or before; return the ids.

        Until the given time tokens of theirs are held against the list of revocations.
        """
        async with tenant_transaction(self._pool, tenant) as connection:
            rows = await connection.fetch(_REVOKE_OF_DEVICE, tenant, device_id, made_until)
            revoked = [row["id"] for row in rows]
            await insert_revocations(
                connection, tenant=tenant, kind=RevocationKind.CERTIFICATE, ids=revoked, until=until
            )
        return revoked

    async def on_crl(self) -> Sequence[Revoked]:
        """Return those of all tenants that are revoked and have not expired."""
        return [Revoked(int(row["id"], 16), row["revoke_time"]) for row in await self._pool.fetch(_ON_CRL)]


def _certificate(row: asyncpg.Record) -> DeviceCertificate:
    return DeviceCertificate(
        tenant=row["tenant_id"],
        id=row["id"],
        device_id=row["device_id"],
        uri=row["uri"],
        chain=row["chain"],
        fingerprint=row["fingerprint"],
        renewed_from=row["renewed_from"],
        creator=row["creator"],
        create_us=from_datetime(row["create_time"]),
        expire_us=from_datetime(row["expire_time"]),
        revoke_us=_us(row["revoke_time"]),
        device_create_us=_us(row["device_create_time"]),
    )


def _us(time: datetime | None) -> int | None:
    return None if time is None else from_datetime(time)


def _time(us: int | None) -> datetime | None:
    return None if us is None else to_datetime(us)
