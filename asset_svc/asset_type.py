"""Rules of asset types."""

from asset_svc.resources import Resources, Rows
from meshkit.errors import invalid_field
from twinmesh.asset.v1.asset_type_service_pb2 import HEALTH_METHOD_WEIGHTED, AssetType


class AssetTypes(Resources[AssetType, Rows[AssetType]]):
    """What kinds of assets a tenant has."""

    resource = "asset_type"

    def _check(self, resource: AssetType, *, path: str) -> None:
        algorithm = resource.health_algorithm
        at = f"{path}.health_algorithm.inputs"
        for index, each in enumerate(algorithm.inputs):
            if not each.limit_min <= each.good_min <= each.good_max <= each.limit_max:
                raise invalid_field(f"{at}[{index}]", "needs limit_min <= good_min <= good_max <= limit_max")
        weighted = algorithm.method == HEALTH_METHOD_WEIGHTED
        if weighted and algorithm.inputs and not any(each.weight for each in algorithm.inputs):
            raise invalid_field(at, "a weighted mean needs an input with a weight above 0")
