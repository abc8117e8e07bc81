"""Runs twin_svc: python -m twin_svc."""

from meshkit.runtime import run
from twin_svc.app import app
from twin_svc.config import TwinSettings

if __name__ == "__main__":
    run("twin_svc", TwinSettings, app)
