"""Columns as a serialized Batch.

The messages below are the contract's Batch and Columns with `bytes` where those have
packed numbers: on the wire both are the same, and an array is copied instead of being
read number by number.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from numpy.typing import NDArray

from twinmesh_client.values import Kind

_Type = descriptor_pb2.FieldDescriptorProto
_FIELDS = {
    "PackedColumns": {
        "series": 1, "run_lengths": 2, "times": 3, "double_values": 4, "int_values": 5, "bool_values": 6,
        "string_codes": 10,
    },
    "PackedBatch": {"columns": 4},
}  # fmt: skip

# Upper bounds of what is serialized, in bytes.
BATCH_BYTES = 96  # Tags and lengths of all fields, and the sequence.
RUN_BYTES = 8
_TIME_BYTES = 8
_TEXT_BYTES = 4  # Tag and length.
_FIELD_BYTES = 6  # Likewise, of a packed column.
_POINT = np.dtype(
    [
        ("tag", "u1"), ("size", "u1"),
        ("latitude_tag", "u1"), ("latitude", "<f8"),
        ("longitude_tag", "u1"), ("longitude", "<f8"),
        ("altitude_tag", "u1"), ("altitude", "<f8"),
    ]
)  # fmt: skip
_ALTITUDE_BYTES = 9
SAMPLE_BYTES = {
    Kind.DOUBLE: _TIME_BYTES + 8,
    Kind.INT: _TIME_BYTES + 8,
    Kind.BOOL: _TIME_BYTES + 1,
    Kind.STRING: _TIME_BYTES + _TEXT_BYTES,  # And its own bytes.
    Kind.POINT: _TIME_BYTES + _POINT.itemsize,
}


@dataclass(frozen=True, slots=True)
class BatchColumns:
    """Samples of a batch: one run per series, values per kind in the order of the runs.

    Attributes:
        aliases: uint32 (runs,).
        run_lengths: uint32 (runs,), from 1 on.
        times: int64 (samples,), microseconds since the epoch.
        values: DOUBLE float64 (n,), INT int64 (n,), BOOL uint8 (n,), POINT float64 (n, 3).
        strings: UTF-8.
    """

    aliases: NDArray[np.uint32]
    run_lengths: NDArray[np.uint32]
    times: NDArray[np.int64]
    values: dict[Kind, NDArray[Any]]
    strings: list[bytes] = field(default_factory=list)


def encode(sequence: int, columns: BatchColumns) -> bytes:
    """Return a serialized Batch of mode PARTIAL."""
    of_kind = columns.values
    packed = _PackedColumns(
        series=_packed(columns.aliases, "<u4"),
        run_lengths=_packed(columns.run_lengths, "<u4"),
        times=_packed(columns.times, "<i8"),
    )
    texts = dict.fromkeys(columns.strings)
    # Codes never take more than was reckoned with: as many bytes as stand beside each text.
    if sum(map(len, texts)) + len(texts) * _TEXT_BYTES + _FIELD_BYTES <= sum(map(len, columns.strings)):
        places = dict(zip(texts, range(len(texts)), strict=True))
        codes = np.fromiter(map(places.__getitem__, columns.strings), np.uint32, len(columns.strings))
        packed.string_dictionary.extend(texts)
        packed.string_codes = _packed(codes, "<u4")
    else:
        packed.string_values.extend(columns.strings)
    if Kind.DOUBLE in of_kind:
        packed.double_values = _packed(of_kind[Kind.DOUBLE], "<f8")
    if Kind.INT in of_kind:
        packed.int_values = _packed(of_kind[Kind.INT], "<i8")
    if Kind.BOOL in of_kind:
        packed.bool_values = _packed(of_kind[Kind.BOOL], "u1")
    points = _points(of_kind[Kind.POINT]) if Kind.POINT in of_kind else b""
    batch: bytes = _PackedBatch(
        sequence=sequence, columns=packed.SerializeToString() + points
    ).SerializeToString()
    return batch


def _packed(column: NDArray[Any], wire: str) -> bytes:
    return column.astype(wire, copy=False).tobytes()


def _points(points: NDArray[np.float64]) -> bytes:
    """Return the fields `point_values`: an absent altitude is left out, zeros are written."""
    known = ~np.isnan(points[:, 2])
    rows = np.empty(len(points), dtype=_POINT)
    rows["tag"] = 8 << 3 | 2
    rows["size"] = np.where(known, _POINT.itemsize - 2, _POINT.itemsize - 2 - _ALTITUDE_BYTES)
    for number, name in enumerate(("latitude", "longitude", "altitude"), start=1):
        rows[f"{name}_tag"] = number << 3 | 1
        rows[name] = points[:, number - 1]
    written = np.ones((len(points), _POINT.itemsize), dtype=np.bool_)
    written[~known, -_ALTITUDE_BYTES:] = False
    return rows.view(np.uint8).reshape(written.shape)[written].tobytes()


def _message_classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="packed.proto", package="twinmesh_client", syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field_name, number in fields.items():
            message.field.add(
                name=field_name, number=number, type=_Type.TYPE_BYTES, label=_Type.LABEL_OPTIONAL
            )
    columns, batch = file.message_type
    for field_name, number in (("string_values", 7), ("string_dictionary", 9)):
        columns.field.add(name=field_name, number=number, type=_Type.TYPE_BYTES, label=_Type.LABEL_REPEATED)
    batch.field.add(name="sequence", number=1, type=_Type.TYPE_UINT64, label=_Type.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))
        for name in _FIELDS
    }


_CLASSES = _message_classes()
_PackedColumns, _PackedBatch = _CLASSES["PackedColumns"], _CLASSES["PackedBatch"]
