"""Resume tokens: which commits a caller was told of, as a text."""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from meshkit.errors import invalid_field

_FORM = 1


@dataclass(frozen=True, slots=True)
class Coverage:
    """Commits that were told.

    Attributes:
        base: every instance up to this one that `numbers` does not name was told whole.
        numbers: of other instances, up to which commit.
    """

    base: int = 0
    numbers: Mapping[int, int] = field(default_factory=dict)

    def of(self, instance: int) -> float:
        """Return up to which of an instance's commits were told, infinity for all that there will be."""
        number = self.numbers.get(instance)
        if number is not None:
            return number
        return float("inf") if instance <= self.base else 0

    def covers(self, other: "Coverage") -> bool:
        """Say whether every commit that the other tells was told here, too."""
        if other.base > self.base:
            return False
        named = {*self.numbers, *other.numbers}
        return all(self.of(instance) >= other.of(instance) for instance in named)

    def told(self, instances: npt.NDArray[np.int32], commits: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return of each (instance, commit) whether it was told; those of instance 0 are taken to be not."""
        told = (instances <= self.base) & (instances > 0)
        for instance, number in self.numbers.items():
            mine = instances == instance
            told[mine] = commits[mine] <= number
        return told


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """How far a watch has told.

    Attributes:
        coverage: of which commits.
        members: a digest of the twins that it held and of the metrics that it was asked for.
    """

    coverage: Coverage
    members: int


def encode(point: ResumePoint) -> str:
    """Return a token."""
    coverage = point.coverage
    content = [_FORM, coverage.base, sorted(coverage.numbers.items()), point.members]
    return base64.urlsafe_b64encode(json.dumps(content, separators=(",", ":")).encode()).decode().rstrip("=")


def decode(token: str) -> ResumePoint:
    """Return what a token says.

    Raises:
        InvalidArgument: INVALID_FIELD, it is none.
    """
    try:
        content = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        form, base, numbers, members = content
        coverage = Coverage(base, dict(numbers))
    except (ValueError, TypeError, binascii.Error) as error:
        raise _no_token() from error
    integers = [base, *coverage.numbers, *coverage.numbers.values(), members]
    if form != _FORM or not all(type(number) is int and 0 <= number < 1 << 63 for number in integers):
        raise _no_token()
    return ResumePoint(coverage, members)


def _no_token() -> Exception:
    return invalid_field("resume_token", "is no token of a watch; leave it out to begin anew")
