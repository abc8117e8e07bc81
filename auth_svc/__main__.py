"""Runs auth_svc."""

from auth_svc.app import app
from auth_svc.config import AuthSettings
from meshkit.runtime import run

if __name__ == "__main__":
    run("auth_svc", AuthSettings, app)
