"""Runs the maintenance worker: `python -m telemetry_store.maintenance`."""

from meshkit.runtime import run
from telemetry_store.maintenance.app import SERVICE, app
from telemetry_store.maintenance.config import MaintenanceSettings

if __name__ == "__main__":
    run(SERVICE, MaintenanceSettings, app)
