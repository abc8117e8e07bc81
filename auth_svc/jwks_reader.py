"""Reads JWK sets from where the operator says."""

import asyncio

from auth_svc.issuer_keys import ReadJwks
from auth_svc.issuers import Issuer
from meshkit.outbound import Outbound, OutboundError

_READ_JWKS_S = 5.0


def jwks_reader(outside: Outbound) -> ReadJwks:
    """Return what reads issuers' keys, from files and from outside."""

    async def read(issuer: Issuer) -> bytes:
        if issuer.jwks_file is not None:
            return await asyncio.to_thread(issuer.jwks_file.read_bytes)
        try:
            return (await outside.request("GET", issuer.jwks_url, timeout_s=_READ_JWKS_S)).content
        except OutboundError as error:
            raise OSError(str(error)) from error

    return read
