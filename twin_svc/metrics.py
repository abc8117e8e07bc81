"""What twin_svc measures; docs/metrics.md says what for."""

from collections.abc import Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from meshkit.metrics import reading
from twin_svc.fleet import Fleet
from twin_svc.follower import FeedFollower
from twin_svc.watches import Watches

# Seconds; watches that look every 0.1 s at most, or as seldom as once a minute.
_LAGS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)


class TwinMetrics:
    """Instruments of twin_svc.

    Args:
        meter: makes them.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._watch_lag = meter.create_histogram(
            "twinmesh.twin.watch.lag",
            unit="s",
            description="Time from a change in this process until a watcher had taken what was told of it.",
            explicit_bucket_boundaries_advisory=_LAGS,
        )

    def observe(self, *, fleet: Fleet, follower: FeedFollower, watches: Watches) -> None:
        """Export what these tell of themselves, from now on."""
        meter = self._meter

        def applied(_: CallbackOptions) -> Iterable[Observation]:
            yield Observation(follower.announced_commits, {"source": "announcement"})
            yield Observation(follower.found_commits, {"source": "store"})

        meter.create_observable_counter(
            "twinmesh.twin.commits.applied",
            [applied],
            unit="{commit}",
            description="Commits that were applied to the twins.",
        )
        meter.create_observable_gauge(
            "twinmesh.twin.feed.lag",
            reading(lambda: follower.lag_s),
            unit="s",
            description="Time since the store was last seen to hold nothing that the twins have not.",
        )
        meter.create_observable_up_down_counter(
            "twinmesh.twin.twins",
            reading(lambda: len(fleet)),
            unit="{twin}",
            description="Twins in memory.",
        )
        meter.create_observable_up_down_counter(
            "twinmesh.twin.watches",
            reading(lambda: len(watches)),
            unit="{watch}",
            description="Open watches.",
        )

    def watcher_told(self, lag_s: float) -> None:
        """Take in that a watcher has taken what was told of a change so many seconds ago."""
        self._watch_lag.record(lag_s)
