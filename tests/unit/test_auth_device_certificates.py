"""Who may let devices in."""

from typing import Any

import pytest

from auth_svc.device_certificates import DeviceCertificates
from meshkit.errors import PermissionDenied
from meshkit.identity import Principal, PrincipalKind
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


async def test_nobody_lets_a_device_in_who_may_not_do_what_it_does() -> None:
    nothing: Any = None
    certificates = DeviceCertificates(
        authority=None, store=nothing, devices=nothing, announce=nothing, clock=nothing, valid_days=1
    )
    caller = Principal("demo", "k1", PrincipalKind.API_KEY, frozenset({"device_certificate:write"}))
    with pytest.raises(PermissionDenied) as refused:
        await certificates.issue(caller, device_id="pump-1", csr="", valid_days=0)
    assert refused.value.reason == ErrorReason.ERROR_REASON_GRANT_EXCEEDS_CALLER
    assert refused.value.metadata == {"permission": "telemetry:write"}
