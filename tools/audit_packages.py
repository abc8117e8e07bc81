"""Known weaknesses of the locked packages, by pip-audit; told apart from advisories that cannot be asked for.

    python -m tools.audit_packages requirements.lock

Ends with 0 only when every package was asked about and none has a known weakness.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SHOWN = 5
_UNKNOWN = "Nothing is known of them, neither good nor bad. Run it where https://pypi.org can be reached."


def main() -> None:
    """Audit the file that the command line names."""
    lock = Path(sys.argv[1])
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--requirement",
        str(lock),
        "--require-hashes",
        "--disable-pip",
    ]
    done = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off"],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        why = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        sys.exit(f"ADVISORIES NOT REACHED for any package of {lock}: {why}\n{_UNKNOWN}")
    problems = judged(packages)
    if problems:
        sys.exit("\n".join(problems))


def judged(packages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is wrong, empty when nothing is: weaknesses first, then what nobody could be asked about.

    Args:
        packages: as pip-audit tells them.
    """
    problems = [
        f"WEAKNESS {package['name']} {package['version']}: {each['id']}"
        f" (repaired in {', '.join(each['fix_versions']) or 'no version yet'})"
        for package in packages
        for each in package.get("vulns", ())
    ]
    skipped = [package for package in packages if "skip_reason" in package]
    if skipped:
        names = ", ".join(package["name"] for package in skipped[:_SHOWN])
        more = f" and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
        problems += [
            f"ADVISORIES NOT REACHED for {len(skipped)} of {len(packages)} packages: {names}{more}",
            f"For the first: {skipped[0]['skip_reason']}",
            _UNKNOWN,
        ]
    return problems


if __name__ == "__main__":
    main()
