"""Runs ingest_svc: python -m ingest_svc."""

from ingest_svc.app import app
from ingest_svc.config import IngestSettings
from meshkit.runtime import run

if __name__ == "__main__":
    run("ingest_svc", IngestSettings, app)
