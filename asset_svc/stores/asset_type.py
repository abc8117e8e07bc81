"""Table asset.asset_type."""

import json

import asyncpg
from google.protobuf.json_format import MessageToDict, ParseDict

from asset_svc.stores.columns import EnumText, containing
from asset_svc.stores.rows import Table, TableRows
from meshkit.db import Connection
from twinmesh.asset.v1.asset_type_service_pb2 import (
    AssetType,
    HealthInput,
    HealthMethod,
    ListAssetTypesRequest,
)

_METHOD = EnumText(HealthMethod, "HEALTH_METHOD_")


def _values(asset_type: AssetType) -> tuple[object, ...]:
    algorithm = asset_type.health_algorithm
    inputs = [MessageToDict(each, preserving_proto_field_name=True) for each in algorithm.inputs]
    return (
        asset_type.display_name,
        _METHOD.text(algorithm.method) if asset_type.HasField("health_algorithm") else None,
        json.dumps(inputs),
    )


def _filters(request: ListAssetTypesRequest) -> tuple[object, ...]:
    return (containing(request.search),)


def _from_row(row: asyncpg.Record) -> AssetType:
    asset_type = AssetType(id=row["id"], display_name=row["display_name"])
    if row["health_method"] is not None:
        asset_type.health_algorithm.method = _METHOD.value(row["health_method"])
        asset_type.health_algorithm.inputs.extend(
            ParseDict(each, HealthInput()) for each in json.loads(row["health_inputs"])
        )
    return asset_type


_TABLE = Table(
    resource="asset_type",
    insert="""
        INSERT INTO asset.asset_type (tenant_id, id, display_name, health_method, health_inputs)
        VALUES ($1, $2, $3, $4, $5)
        RETURNING version, create_time, update_time
    """,
    update="""
        UPDATE asset.asset_type
        SET display_name = $3, health_method = $4, health_inputs = $5,
            version = version + 1, update_time = now()
        WHERE tenant_id = $1 AND id = $2
        RETURNING version, create_time, update_time
    """,
    find="""
        SELECT id, display_name, health_method, health_inputs, version, create_time, update_time
        FROM asset.asset_type
        WHERE tenant_id = $1 AND id = ANY ($2)
    """,
    page=r"""
        SELECT id, display_name, health_method, health_inputs, version, create_time, update_time
        FROM asset.asset_type
        WHERE tenant_id = $1 AND id > $2
            AND ($4::text = '' OR id LIKE lower($4) OR display_name COLLATE "pg_c_utf8" ILIKE $4)
        ORDER BY id
        LIMIT $3
    """,
    delete="DELETE FROM asset.asset_type WHERE tenant_id = $1 AND id = $2",
    values=_values,
    filters=_filters,
    from_row=_from_row,
)


class AssetTypeRows(TableRows[AssetType]):
    """One tenant's asset types, inside of a transaction."""

    def __init__(self, connection: Connection, tenant: str) -> None:
        super().__init__(connection, tenant, _TABLE)
