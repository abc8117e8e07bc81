"""How `make audit` tells weaknesses from advisories that it could not ask for."""

import pytest

from tools.audit_packages import judged

GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found on PyPI"}


_NONE_OF_SEVEN = "ADVISORIES NOT REACHED for 7 of 7 packages: " + "unknown, " * 4 + "unknown and 2 more"
_BAD = "WEAKNESS bad 1.0: PYSEC-1 (repaired in 1.1)"


@pytest.mark.parametrize(
    ("packages", "told"),
    [
        ([GOOD], []),
        ([GOOD, BAD], [_BAD]),
        ([UNKNOWN, GOOD], ["ADVISORIES NOT REACHED for 1 of 2 packages: unknown"]),
        ([UNKNOWN] * 7, [_NONE_OF_SEVEN]),
        ([BAD, UNKNOWN], [_BAD, "ADVISORIES NOT REACHED for 1 of 2 packages: unknown"]),
    ],
)
def test_only_what_was_asked_about_passes(packages: list[dict[str, object]], told: list[str]) -> None:
    found = judged(packages)
    assert bool(found) == bool(told)
    for line, expected in zip(found, told, strict=False):
        assert line.startswith(expected)
