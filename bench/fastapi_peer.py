"""The peer of `bench unary`, as one would write it with FastAPI and asyncpg.

The same durable, authenticated endpoint: it checks the token, validates the body and
commits each request.

Run with uvicorn; configured by PEER_DATABASE_URL and PEER_JWKS.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import asyncpg
import jwt
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field, FiniteFloat

_TABLES = """
CREATE SCHEMA IF NOT EXISTS peer;
CREATE TABLE IF NOT EXISTS peer.request (tenant text, request_id text, PRIMARY KEY (tenant, request_id));
CREATE TABLE IF NOT EXISTS peer.sample (
    tenant text, device_id text, metric text, time timestamptz, value double precision,
    PRIMARY KEY (tenant, device_id, metric, time)
);
"""
_KEYS = {key["kid"]: jwt.PyJWK(key) for key in json.loads(os.environ["PEER_JWKS"])["keys"]}


class Reading(BaseModel):
    """What one device measured at one time."""

    deviceId: str = Field(pattern="^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$")  # noqa: N815 - the JSON name
    time: datetime
    numbers: dict[str, FiniteFloat]


class Telemetry(BaseModel):
    """One batch of readings."""

    readings: list[Reading] = Field(min_length=1, max_length=10_000)
    requestId: str = Field(max_length=128)  # noqa: N815 - the JSON name


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold the pool while the app lives."""
    async with asyncpg.create_pool(os.environ["PEER_DATABASE_URL"], min_size=8, max_size=32) as pool:
        await pool.execute(_TABLES)
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


async def tenant(credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    """Return the caller's tenant after checking its token."""
    try:
        key = _KEYS[jwt.get_unverified_header(credentials.credentials)["kid"]]
        claims = jwt.decode(
            credentials.credentials, key, algorithms=["EdDSA"], audience="twinmesh", issuer="twinmesh"
        )
    except (jwt.PyJWTError, KeyError):
        raise HTTPException(401) from None
    if "telemetry:write" not in claims["perms"]:
        raise HTTPException(403)
    return str(claims["tenant"])


@app.post("/v1/telemetry")
async def ingest(body: Telemetry, owner: Annotated[str, Depends(tenant)], request: Request) -> dict[str, Any]:
    """Store readings once per request id, durably."""
    pool: asyncpg.Pool = request.app.state.pool
    async with pool.acquire() as connection, connection.transaction():
        fresh = await connection.fetchval(
            "INSERT INTO peer.request (tenant, request_id) VALUES ($1, $2) "
            "ON CONFLICT DO NOTHING RETURNING true",
            owner,
            body.requestId,
        )
        if not fresh:
            return {"duplicate": True}
        rows = [
            (owner, reading.deviceId, metric, reading.time, value)
            for reading in body.readings
            for metric, value in reading.numbers.items()
        ]
        await connection.executemany(
            "INSERT INTO peer.sample (tenant, device_id, metric, time, value) VALUES ($1, $2, $3, $4, $5) "
            "ON CONFLICT (tenant, device_id, metric, time) DO UPDATE SET value = excluded.value",
            rows,
        )
    return {"storedSamples": str(len(rows)), "duplicate": False}
