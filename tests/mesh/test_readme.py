"""The README's commands, run as printed: only address and folder are this test's."""

import re
import subprocess
from pathlib import Path

import pytest

from meshkit.testing.mesh import Mesh

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("guide", "seen"),
    [
        (
            "README.md",
            [
                "telemetry.commit",
                "21.5",
                '"storedSamples": "1"',
                "Offices 21.",
                "1 sample is durable",
                "acknowledged: True",
                "8 samples read",
                " 0 without an outcome",
            ],
        ),
        (
            "docs/api.md",
            [
                '"storedSamples":"2"',
                "METRIC_UNKNOWN",
                "durable_through: 1",
                '"displayName":"Kettle"',
                "80.5",
                "INVALID_FIELD",
                '"kind":"device"',
            ],
        ),
    ],
)
def test_every_command_works_as_printed(mesh: Mesh, tmp_path: Path, guide: str, seen: list[str]) -> None:
    text = (ROOT / guide).read_text(encoding="utf-8")
    script = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    script = script.replace("127.0.0.1:8080", mesh.address).replace("/tmp/", f"{tmp_path}/")
    script = script.replace("port=1883", f"port={mesh.mqtt_port}").replace(
        "127.0.0.1:8443", f"127.0.0.1:{mesh.device_port}"
    )
    done = subprocess.run(
        ["/usr/bin/env", "bash", "-e", "-o", "pipefail", "-c", script],
        cwd=ROOT,
        # The second guide goes on where the first one logged in.
        env={**mesh.environment, "PASSWORD": mesh.password, "TOKEN": mesh.log_in()},
        # Whatever asks, asks for the password.
        input=f"{mesh.password}\n" * 3,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    assert [words for words in seen if words not in done.stdout] == [], done.stdout
