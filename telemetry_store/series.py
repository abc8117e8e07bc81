"""What is known of series: who they are, their latest samples, places in their history."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from telemetry_store.columns import Kind


class Point(NamedTuple):
    """A position (WGS 84): degrees north, degrees east, metres above the ellipsoid if known."""

    latitude: float
    longitude: float
    altitude: float | None


Value = float | int | bool | str | Point


@dataclass(frozen=True, slots=True)
class SeriesKey:
    """What a series measures; `unit` is that of the stored values."""

    device_id: str
    metric: str
    kind: Kind
    unit: str


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of one device in one kind; `series_id` is unique in the installation."""

    series_id: int
    tenant: str
    device_id: str
    metric: str
    kind: Kind
    unit: str

    @classmethod
    def of(cls, row: Any) -> "Series":
        """Return what a row says that has the columns of telemetry.series."""
        return cls(
            row["series_id"],
            row["tenant_id"],
            row["device_id"],
            row["metric"],
            Kind(row["kind"]),
            row["unit"],
        )

    @property
    def place(self) -> tuple[str, str, int]:
        """Return its place among all of its tenant: by device, metric and kind."""
        return self.device_id, self.metric, self.kind


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the history of devices: in one series, after a time (microseconds since the epoch)."""

    device_id: str
    metric: str
    kind: Kind
    after_us: int

    @property
    def place(self) -> tuple[str, str, int]:
        """Return the place of the series, as in Series."""
        return self.device_id, self.metric, self.kind
