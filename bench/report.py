"""What a bench found: a table for people, one JSON object for programs."""

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Case:
    """One figure; `ratio` compares it with the case that the bench names as its peer."""

    name: str
    value: float
    unit: str
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of one bench and where they come from."""

    bench: str
    cases: Sequence[Case]
    notes: Sequence[str] = ()

    def show(self, *, as_json: bool) -> None:
        """Print the report."""
        if as_json:
            whole = {"bench": self.bench, "machine": machine(), "commit": commit()}
            print(json.dumps({**whole, "cases": [asdict(case) for case in self.cases]}))
            return
        table = Table("case", "value", "unit", "ratio", title=f"bench {self.bench} ({machine()}, {commit()})")
        for case in self.cases:
            ratio = "" if case.ratio is None else f"{case.ratio:.2f}"
            table.add_row(
                case.name,
                f"{case.value:.4g}" if abs(case.value) < 1000 else f"{case.value:,.0f}",
                case.unit,
                ratio,
            )
        # What stands in brackets is no markup here.
        console = Console(markup=False)
        console.print(table)
        for note in self.notes:
            console.print(note)


def machine() -> str:
    """Return what the bench runs on, without names."""
    memory = round(psutil.virtual_memory().total / 2**30)
    return (
        f"{psutil.cpu_count()} cores, {memory} GiB, {platform.machine()}, Python {platform.python_version()}"
    )


def commit() -> str:
    """Return the checkout's commit, "+" when files were changed since."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["/usr/bin/env", "git", *arguments], cwd=root, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies, 0 to 1, between two values linearly."""
    return float(np.quantile(values, share))
