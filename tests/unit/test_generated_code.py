"""The scripts that write third_party/ and gen/."""

from pathlib import Path

import betterproto2
import pytest
from betterproto.twinmesh.ingest.v1 import IngestTelemetryRequest, Reading
from google.protobuf import descriptor_pb2

from tools import generate, third_party_protos
from twinmesh.ingest.v1 import ingest_service_pb2


def test_validate_proto_compiles_back_to_protovalidates_descriptor() -> None:
    descriptor = third_party_protos.validate_descriptor()
    printed = third_party_protos.ProtoPrinter(descriptor).print()
    assert third_party_protos.compile_proto(printed, descriptor.name) == descriptor


def test_an_option_that_cannot_be_printed_is_refused() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="odd.proto", package="odd")
    file.options.optimize_for = descriptor_pb2.FileOptions.CODE_SIZE
    with pytest.raises(NotImplementedError, match="optimize_for"):
        third_party_protos.ProtoPrinter(file).print()


def test_drift_names_missing_stale_and_different_files_and_install_removes_it(tmp_path: Path) -> None:
    fresh, committed = tmp_path / "fresh", tmp_path / "committed"
    for path, text in {
        fresh / "same.py": "same",
        fresh / "new" / "deep.py": "new",
        fresh / "changed.py": "after",
        committed / "same.py": "same",
        committed / "changed.py": "before",
        committed / "old.py": "old",
        committed / "__pycache__" / "same.pyc": "not generated, not drift",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert generate.drift(fresh, committed) == [
        "missing   gen/new/deep.py",
        "stale     gen/old.py",
        "different gen/changed.py",
    ]
    generate.install(fresh, committed)
    assert generate.drift(fresh, committed) == []


def test_dataclass_messages_and_protobuf_messages_are_the_same_on_the_wire() -> None:
    dataclass = IngestTelemetryRequest(
        request_id="r-1", readings=[Reading(device_id="pump-1", numbers={"temperature": 21.5})]
    )
    message = ingest_service_pb2.IngestTelemetryRequest.FromString(bytes(dataclass))
    assert message.readings[0].numbers["temperature"] == 21.5
    assert isinstance(dataclass, betterproto2.Message)
    assert IngestTelemetryRequest.parse(message.SerializeToString()) == dataclass


def test_the_descriptor_set_is_complete_and_ours() -> None:
    descriptors = descriptor_pb2.FileDescriptorSet.FromString(
        (generate.GENERATED / "twinmesh.binpb").read_bytes()
    )
    files = {file.name: file for file in descriptors.file}
    assert all(name in files for file in descriptors.file for name in file.dependency)
    services = {service.name for file in descriptors.file for service in file.service}
    assert {"IngestService", "TwinService", "SessionService"} <= services
    assert "Authorization" not in services
