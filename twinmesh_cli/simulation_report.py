"""What a simulation tells of itself: counts, rates, and whether they add up."""

from collections import deque
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from twinmesh_cli.doors import Outcome
from twinmesh_cli.simulation import Defect, Sent

_WINDOW_S = 3.0


@dataclass(frozen=True, slots=True)
class Report:
    """A moment of a simulation.

    Attributes:
        devices: how many there are.
        seconds: since it began.
        sent: what was made.
        outcome: what became of it.
    """

    devices: int
    seconds: float
    sent: Sent
    outcome: Outcome

    @property
    def backlog(self) -> int:
        """Return how many samples have no outcome."""
        return max(0, self.sent.samples - self.outcome.durable - self.outcome.refused)

    @property
    def problems(self) -> list[str]:
        """Return what is not as it was meant, when nothing more comes."""
        problems = []
        if self.backlog:
            problems.append(f"{self.backlog:,} samples have no outcome: the mesh did not answer for them")
        if not self.outcome.tells_refusals:
            return problems
        unexpected = self.outcome.refused - self.sent.bad
        if unexpected > 0:
            problems.append(f"{unexpected:,} samples were refused that were good")
        elif unexpected < 0 and not self.backlog:
            problems.append(f"{-unexpected:,} samples were taken that were bad")
        return problems

    @property
    def line(self) -> str:
        """Return all of it as a line."""
        outcome = self.outcome
        refused = f"{outcome.refused:,} refused{_listed(_reasons(outcome))}"
        if not outcome.tells_refusals:
            refused = "refusals are not told"
        return (
            f"sent {self.sent.samples:,} samples of {_devices(self.devices)} in {self.seconds:.1f} s"
            f"{_listed(_defects(self.sent))}: "
            f"{outcome.durable:,} durable, {refused}, {self.backlog:,} without an outcome"
        )


class Rates:
    """Counts per second, over the last seconds."""

    def __init__(self) -> None:
        self._moments: deque[tuple[float, tuple[int, ...]]] = deque()

    def take(self, seconds: float, counts: tuple[int, ...]) -> tuple[float, ...]:
        """Take counts of a moment, as many in each; return the rates up to it."""
        moments = self._moments
        moments.append((seconds, counts))
        # The first one is the last from before the window.
        while len(moments) > 2 and moments[1][0] <= seconds - _WINDOW_S:
            moments.popleft()
        began, first = moments[0]
        passed = seconds - began
        return tuple(
            (now - before) / passed if passed > 0 else 0.0 for now, before in zip(counts, first, strict=True)
        )


def table(report: Report, rates: tuple[float, ...]) -> Table:
    """Return a report as a table.

    Args:
        report: the moment.
        rates: of what was sent, is durable, and was refused, per second.
    """
    shown = Table(box=None, header_style="bold", pad_edge=False)
    shown.add_column("samples")
    shown.add_column("all", justify="right")
    shown.add_column("per second", justify="right")
    shown.add_column("")
    outcome = report.outcome
    rows: tuple[tuple[str, int, list[str]], ...] = (
        ("sent", report.sent.samples, _defects(report.sent)),
        ("durable", outcome.durable, []),
        ("refused", outcome.refused, _reasons(outcome)),
    )
    for (name, count, details), rate in zip(rows, rates, strict=True):
        shown.add_row(name, f"{count:,}", f"{rate:,.0f}", ", ".join(details))
    shown.add_row("backlog", f"{report.backlog:,}", "", "")
    state = "connected" if outcome.is_connected else "no connection"
    shown.caption = Text(f"{_devices(report.devices)}, {report.seconds:.0f} s, {state}")
    shown.caption_justify = "left"
    return shown


def _devices(count: int) -> str:
    return f"{count:,} device{'' if count == 1 else 's'}"


def _defects(sent: Sent) -> list[str]:
    counts = {
        "late": sent.defects[Defect.LATE],
        "twice": sent.defects[Defect.DUPLICATE],
        "bad": sent.bad,
    }
    return [f"{count:,} {name}" for name, count in counts.items() if count]


def _reasons(outcome: Outcome) -> list[str]:
    return [f"{count:,} {reason}" for reason, count in sorted(outcome.reasons.items())]


def _listed(details: list[str]) -> str:
    return f" ({', '.join(details)})" if details else ""
