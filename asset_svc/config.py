"""Settings of asset_svc and of its seed."""

from pydantic import Field, SecretStr

from meshkit.config import BusServiceSettings, Settings


class AssetSettings(BusServiceSettings):
    """What every service on the bus needs; asset_svc needs nothing more."""


class SeedSettings(Settings):
    """What loading the sample data needs."""

    service_database_url: SecretStr = Field(description="PostgreSQL URL with asset_svc's role.")
    nats_url: SecretStr = Field(
        SecretStr(""),
        description="NATS URL with credentials, to tell running services; empty: none is told.",
    )
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level logged.")
