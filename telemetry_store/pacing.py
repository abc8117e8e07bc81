"""How long batches gather before the next commit: pure, no I/O."""

from dataclasses import dataclass

BULK_SAMPLES = 4_000  # From here on a group's cost is in its rows rather than in its commit.
_CROWD = 8  # From this many batches on others are worth waiting for.
_RESTS = 2.0  # Of what a large commit took: PostgreSQL then works a third of the time.
_LARGE_SAMPLES = 200_000
_REST_AT_MOST_S = 0.25
_QUIET = 0.5  # Of what the last commit took.


@dataclass(frozen=True, slots=True)
class Pause:
    """A wait for more batches.

    Attributes:
        at_most_s: for how long, in seconds.
        quiet_s: it ends before when nothing has come for so long.
    """

    at_most_s: float
    quiet_s: float


def pause_after(*, batches: int, samples: int, took_s: float, window_s: float) -> Pause | None:
    """Return the pause between a group that was committed and batches that came meanwhile.

    Where groups are small nobody is kept waiting: there is time to commit each. A crowd of
    small batches gets the window, since a commit costs more than its rows. Bulk gets a
    rest: rows cost most of a commit, the same series come again in the next batches, and
    longer runs cost hardly more than short ones. The rest grows with the group, so that it
    makes groups larger where much comes, and keeps nobody waiting where little does.

    Args:
        batches: of the last group.
        samples: of it.
        took_s: from its first statement to its answers, in seconds.
        window_s: of a crowd, in seconds.
    """
    window = Pause(window_s, window_s) if batches >= _CROWD else None
    if samples < BULK_SAMPLES:
        return window
    share = min(samples / _LARGE_SAMPLES, 1)
    rest = Pause(min(_RESTS * share * took_s, _REST_AT_MOST_S), _QUIET * took_s)
    return rest if window is None or rest.at_most_s > window.at_most_s else window
