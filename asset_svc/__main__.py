"""Runs the service: `python -m asset_svc`."""

from asset_svc.app import SERVICE, app
from asset_svc.config import AssetSettings
from meshkit.runtime import run

if __name__ == "__main__":
    run(SERVICE, AssetSettings, app)
