"""Puts mosquitto_pub and mosquitto_sub into .tools/mosquitto, for tests with clients that others wrote.

Nothing is installed on the system and root is not needed: Debian's packages are fetched and unpacked.
Run by `make test` where the commands are not on the path.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

# The other libraries that they load belong to what every Python needs.
PACKAGES = ("mosquitto-clients", "libmosquitto1", "libcjson1")
TARGET = Path(__file__).parents[1] / ".tools" / "mosquitto"
COMMANDS = ("mosquitto_pub", "mosquitto_sub")


def main() -> None:
    """Unpacks the packages; exits with what to do instead where that cannot be."""
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if apt is None or dpkg is None:
        _give_up("this system has no packages of Debian or Ubuntu")
    # Where also apt's unprivileged user may write.
    with tempfile.TemporaryDirectory(prefix="mosquitto-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        downloaded = _download(apt, folder)
        if downloaded.returncode:
            # Perhaps the lists of packages are old or missing; only root can renew them.
            subprocess.run([apt, "--quiet", "update"], capture_output=True, check=False)
            downloaded = _download(apt, folder)
        if downloaded.returncode:
            _give_up(f"apt-get download failed:\n{downloaded.stderr.strip()}")
        unpacked = folder / "unpacked"
        for package in sorted(folder.glob("*.deb")):
            subprocess.run([dpkg, "--extract", str(package), str(unpacked)], check=True)
        # All or nothing, so that what is half there is not taken for done.
        shutil.rmtree(TARGET, ignore_errors=True)
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(unpacked, TARGET)


def _download(apt: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [apt, "--quiet", "download", *PACKAGES], cwd=folder, capture_output=True, text=True, check=False
    )


def _give_up(why: str) -> NoReturn:
    sys.exit(
        f"{' and '.join(COMMANDS)} cannot be fetched: {why}\n"
        "Tests that need them fail. Install the clients of Eclipse Mosquitto, then run make test again\n"
        "(Debian and Ubuntu call the package mosquitto-clients, Fedora and Homebrew mosquitto)."
    )


if __name__ == "__main__":
    main()
