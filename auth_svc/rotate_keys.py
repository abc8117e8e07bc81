"""Begins a rotation of the keys that sign access tokens: `python -m auth_svc.rotate_keys`.

Prints {"kid": …, "activate_time": …} of the key that signs next. While one is on its way already
no other is made.
"""

import asyncio
import json
import sys

from pydantic import Field, SecretStr

from auth_svc.signing_keys import KeyRing, SigningKey
from auth_svc.stores.signing_keys import SigningKeyStore
from meshkit import db
from meshkit.clock import Clock, SystemClock, to_datetime
from meshkit.config import RootSettings
from meshkit.runtime import read_settings


class RotateSettings(RootSettings):
    """What a rotation needs."""

    service_database_url: SecretStr = Field(description="PostgreSQL URL with role twinmesh_auth.")


async def rotate_keys(settings: RotateSettings, *, clock: Clock) -> SigningKey:
    """Make the key that signs next, and return it."""
    async with db.pool(
        settings.service_database_url.get_secret_value(), application="auth_rotate_keys", max_size=1
    ) as pool:
        ring = KeyRing(
            store=SigningKeyStore(pool=pool),
            mesh_secret=settings.root_secret,
            clock=clock,
        )
        return await ring.rotate()


if __name__ == "__main__":
    settings = read_settings("auth_svc.rotate_keys", RotateSettings)
    key = asyncio.run(rotate_keys(settings, clock=SystemClock()))
    answer = {"kid": key.kid, "activate_time": to_datetime(key.activate_us).isoformat()}
    sys.stdout.write(json.dumps(answer) + "\n")
