"""Who may call twin_svc."""

from meshkit.callers import GATEWAY, Callers

CALLERS: Callers = {
    "twinmesh.twin.v1.TwinService": (GATEWAY,),
    "twinmesh.twin.v1.EventService": (GATEWAY,),
    "twinmesh.twin.v1.HistoryService": (GATEWAY,),
    "twinmesh.twin.v1.StorageService": (GATEWAY,),
}
