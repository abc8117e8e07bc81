"""Table asset.device_type."""

import json
from datetime import timedelta
from typing import Literal

import asyncpg
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from asset_svc.stores.columns import EnumText, containing
from asset_svc.stores.rows import Table, TableRows
from meshkit.db import Connection
from twinmesh.asset.v1.device_type_service_pb2 import (
    DeviceType,
    ListDeviceTypesRequest,
    MessageMode,
    MetricDefinition,
    ProcessingMode,
    Protocol,
    UnknownChildren,
)

_PROTOCOL = EnumText(Protocol, "PROTOCOL_")
_PROCESSING_MODE = EnumText(ProcessingMode, "PROCESSING_MODE_")
_UNKNOWN_CHILDREN = EnumText(UnknownChildren, "UNKNOWN_CHILDREN_")
_MESSAGE_MODE = EnumText(MessageMode, "MESSAGE_MODE_")
_PARTS: tuple[Literal["message_schema", "quality", "joint_anomaly"], ...] = (
    "message_schema",
    "quality",
    "joint_anomaly",
)


def _to_dict(message: Message) -> dict[str, object]:
    return MessageToDict(message, preserving_proto_field_name=True)


def _values(device_type: DeviceType) -> tuple[object, ...]:
    metrics = [_to_dict(metric) for metric in device_type.metrics]
    return (
        device_type.display_name,
        _PROTOCOL.text(device_type.protocol),
        _PROCESSING_MODE.text(device_type.processing_mode),
        json.dumps(metrics),
        device_type.heartbeat.ToTimedelta() if device_type.HasField("heartbeat") else None,
        *(
            json.dumps(_to_dict(getattr(device_type, part))) if device_type.HasField(part) else None
            for part in _PARTS
        ),
        _UNKNOWN_CHILDREN.text(device_type.unknown_children),
        device_type.child_device_type_id or None,
        _MESSAGE_MODE.text(device_type.message_mode),
    )


def _filters(request: ListDeviceTypesRequest) -> tuple[object, ...]:
    return (containing(request.search),)


def _from_row(row: asyncpg.Record) -> DeviceType:
    device_type = DeviceType(
        id=row["id"],
        display_name=row["display_name"],
        protocol=_PROTOCOL.value(row["protocol"]),
        processing_mode=_PROCESSING_MODE.value(row["processing_mode"]),
        metrics=[ParseDict(metric, MetricDefinition()) for metric in json.loads(row["metrics"])],
        unknown_children=_UNKNOWN_CHILDREN.value(row["unknown_children"]),
        child_device_type_id=row["child_device_type_id"] or "",
        message_mode=_MESSAGE_MODE.value(row["message_mode"]),
    )
    heartbeat: timedelta | None = row["heartbeat"]
    if heartbeat is not None:
        device_type.heartbeat.FromTimedelta(heartbeat)
    for part in _PARTS:
        if row[part] is not None:
            message = getattr(device_type, part)
            message.SetInParent()
            ParseDict(json.loads(row[part]), message)
    return device_type


_TABLE = Table(
    resource="device_type",
    insert="""
        INSERT INTO asset.device_type
            (tenant_id, id, display_name, protocol, processing_mode, metrics, heartbeat, message_schema,
            quality, joint_anomaly, unknown_children, child_device_type_id, message_mode)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        RETURNING version, create_time, update_time
    """,
    update="""
        UPDATE asset.device_type
        SET display_name = $3, protocol = $4, processing_mode = $5, metrics = $6, heartbeat = $7,
            message_schema = $8, quality = $9, joint_anomaly = $10, unknown_children = $11,
            child_device_type_id = $12, message_mode = $13, version = version + 1, update_time = now()
        WHERE tenant_id = $1 AND id = $2
        RETURNING version, create_time, update_time
    """,
    find="""
        SELECT id, display_name, protocol, processing_mode, metrics, heartbeat, message_schema, quality,
            joint_anomaly, unknown_children, child_device_type_id, message_mode, version, create_time,
            update_time
        FROM asset.device_type
        WHERE tenant_id = $1 AND id = ANY ($2)
    """,
    page=r"""
        SELECT id, display_name, protocol, processing_mode, metrics, heartbeat, message_schema, quality,
            joint_anomaly, unknown_children, child_device_type_id, message_mode, version, create_time,
            update_time
        FROM asset.device_type
        WHERE tenant_id = $1 AND id > $2
            AND ($4::text = '' OR id LIKE lower($4) OR display_name COLLATE "pg_c_utf8" ILIKE $4)
        ORDER BY id
        LIMIT $3
    """,
    delete="DELETE FROM asset.device_type WHERE tenant_id = $1 AND id = $2",
    values=_values,
    filters=_filters,
    from_row=_from_row,
)


class DeviceTypeRows(TableRows[DeviceType]):
    """One tenant's device types, inside of a transaction."""

    def __init__(self, connection: Connection, tenant: str) -> None:
        super().__init__(connection, tenant, _TABLE)
