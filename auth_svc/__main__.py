"""Runs auth_svc."""

import sys
from contextlib import AbstractAsyncContextManager

from auth_svc.app import app
from auth_svc.config import AuthSettings
from auth_svc.issuers import IssuersInvalid, read_issuers
from meshkit.runtime import BAD_SETTINGS, run


def _started(settings: AuthSettings) -> AbstractAsyncContextManager[int]:
    """Look at the issuers before anything is opened: a file of theirs is as good as a setting."""
    if settings.issuers is not None:
        try:
            read_issuers(settings.issuers)
        except IssuersInvalid as invalid:
            sys.stderr.write(f"auth_svc: TWINMESH_ISSUERS: {invalid}\n")
            sys.exit(BAD_SETTINGS)
    return app(settings)


if __name__ == "__main__":
    run("auth_svc", AuthSettings, _started)
