"""Puts a pinned uv into .tools/, with nothing but the system's Python.

Run by `make install` before any environment exists, so it imports the standard
library only, and says what to install when the system's Python lacks parts.
"""

import importlib.util
import platform
import subprocess
import sys
from pathlib import Path

UV = "uv==0.13.8"
TOOLS = Path(__file__).parents[1] / ".tools"
OLDEST, NEWEST = (3, 11), (3, 13)


def main() -> None:
    """Installs uv as .tools/bin/uv."""
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        sys.exit(
            f"Twinmesh needs Python 3.11, 3.12 or 3.13; {sys.executable} is {platform.python_version()}.\n"
            "Name another one: make install PYTHON=/usr/bin/python3.11"
        )
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--root-user-action=ignore"]
    if importlib.util.find_spec("ensurepip"):
        _run(sys.executable, "-m", "venv", "--clear", str(TOOLS))
        _run(str(TOOLS / "bin" / "python"), *pip, UV)
    elif importlib.util.find_spec("pip"):
        # Debian's python3-pip without python3-venv. --target leaves the system's packages alone.
        _run(sys.executable, *pip, "--upgrade", "--target", str(TOOLS), UV)
    else:
        sys.exit(
            f"{sys.executable} has neither venv (ensurepip) nor pip, so nothing can be installed with it.\n"
            "On Debian and Ubuntu: apt-get install python3-venv\n"
            "Then run make again."
        )


def _run(*command: str) -> None:
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(f"failed ({code}): {' '.join(command)}")


if __name__ == "__main__":
    main()
