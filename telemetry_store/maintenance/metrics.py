"""What maintenance measures; docs/metrics.md says what for."""

from opentelemetry.metrics import Meter

from meshkit.metrics import reading
from telemetry_store.rollups.keeping import RollupKeeper


def observe_rollups(meter: Meter, keeper: RollupKeeper) -> None:
    """Export how far rollups are and what holds some up, from now on."""
    meter.create_observable_gauge(
        "twinmesh.rollups.lag",
        reading(lambda: keeper.lag_s),
        unit="s",
        description="Time since rollups were last seen to hold every commit.",
    )
    meter.create_observable_gauge(
        "twinmesh.rollups.damaged",
        reading(lambda: keeper.damaged),
        unit="{range}",
        description="Ranges whose rollups wait for an archived day that is missing or damaged.",
    )
