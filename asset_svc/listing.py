"""Pages of resources by id."""

import re
from collections.abc import Awaitable, Callable

from google.protobuf import json_format

from asset_svc.kinds import ResourceT
from meshkit import paging
from twinmesh.asset.v1.asset_service_pb2 import ListAssetsRequest
from twinmesh.asset.v1.asset_type_service_pb2 import ListAssetTypesRequest
from twinmesh.asset.v1.device_service_pb2 import ListDevicesRequest
from twinmesh.asset.v1.device_type_service_pb2 import ListDeviceTypesRequest
from twinmesh.asset.v1.profile_service_pb2 import ListProfilesRequest

ListRequest = (
    ListAssetsRequest
    | ListAssetTypesRequest
    | ListDevicesRequest
    | ListDeviceTypesRequest
    | ListProfilesRequest
)


_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")


async def read_page(
    request: ListRequest,
    *,
    tenant: str,
    default_size: int,
    maximum_size: int,
    fetch: Callable[[str, int], Awaitable[list[ResourceT]]],
) -> tuple[list[ResourceT], str]:
    """Return one page and the token of the next, "" on the last.

    Args:
        request: with page_size and page_token; all of its other fields are filters.
        tenant: whose resources; tokens of one tenant mean nothing in another.
        default_size: rows of a page when page_size is 0.
        maximum_size: most rows of a page.
        fetch: reads at most so many rows whose id comes after the one given, by id.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID.
    """
    question = [tenant, request.DESCRIPTOR.full_name, _filters(request)]
    size = paging.page_size(request.page_size, default=default_size, maximum=maximum_size)
    after = paging.decode(question, request.page_token) or ""
    if not isinstance(after, str) or (after and not _ID.fullmatch(after)):
        raise paging.invalid_token()
    found = await fetch(after, size + 1)
    page = found[:size]
    return page, paging.encode(question, page[-1].id) if len(found) > size else ""


def _filters(request: ListRequest) -> dict[str, object]:
    fields: dict[str, object] = json_format.MessageToDict(request, preserving_proto_field_name=True)
    return {name: value for name, value in fields.items() if name not in ("page_size", "page_token")}
