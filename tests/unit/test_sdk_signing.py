"""The client signs as docs/signing.md says."""

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from twinmesh_client import RequestSigner

_GUIDE = (Path(__file__).parents[2] / "docs/signing.md").read_text(encoding="utf-8")
_BODY = b'{"readings":[{"deviceId":"temp-1","numbers":{"temperature":21.5}}]}'
_NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def _secret() -> str:
    found = re.search(r"SIGNING_SECRET=(\S+)", _GUIDE)
    assert found is not None
    return found[1]


def test_the_guides_example_is_what_the_client_signs() -> None:
    signed = RequestSigner(_secret(), now=lambda: _NOON).authorization("POST", "/v1/telemetry", _BODY)
    _, key, _, date, _, digest, _, signature, _ = signed.split('"')
    assert (key, date) == ("demo_k7example", "2026-11-27T12:00:00.000000Z")
    assert f"the digest is `{digest}` and the signature `{signature}`" in _GUIDE


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the guide's script needs openssl")
def test_the_guides_script_signs_the_same() -> None:
    found = re.search(r"```bash\n(.*?)```", _GUIDE, re.DOTALL)
    assert found is not None
    script = re.sub(r"DATE=\$\(.*\)", "DATE=2026-11-27T12:00:00.000000Z", found[1])
    script = re.sub(r"curl .*", 'echo "$DIGEST $SIGNATURE"', script, flags=re.DOTALL)
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, timeout=30, env=dict(os.environ)
    )
    digest, signature = done.stdout.split()
    assert f"the digest is `{digest}` and the signature `{signature}`" in _GUIDE


def test_dates_are_utc_to_the_microsecond() -> None:
    local = datetime(2026, 11, 27, 14, 0, 0, 7, tzinfo=timezone(timedelta(hours=2)))
    assert 'date="2026-11-27T12:00:00.000007Z"' in RequestSigner(_secret(), now=lambda: local).authorization(
        "GET", "/"
    )


@pytest.mark.parametrize(
    "text", ["", "tmk_demo_k7_" + "0" * 64, "tms_demo_k7_" + "0" * 63, "tms_demo_" + "0" * 64]
)
def test_what_is_no_signing_secret_is_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match="signing_secret"):
        RequestSigner(text)


def test_whitespace_around_the_secret_does_not_count() -> None:
    signers = [RequestSigner(text, now=lambda: _NOON) for text in (_secret(), f" {_secret()}\n")]
    assert len({signer.authorization("GET", "/") for signer in signers}) == 1
