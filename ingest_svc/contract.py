"""Who may call ingest_svc."""

from meshkit.callers import GATEWAY, Callers

CALLERS: Callers = {
    "twinmesh.ingest.v1.IngestService": (GATEWAY,),
    "twinmesh.ingest.v1.IngestPolicyService": (GATEWAY,),
    "twinmesh.ingest.v1.StoragePolicyService": (GATEWAY,),
    "twinmesh.ingest.v1.LimitService": (GATEWAY,),
    "twinmesh.ingest.v1.DeadLetterService": (GATEWAY,),
    "twinmesh.ingest.v1.ReceiptService": (GATEWAY,),
    "twinmesh.ingest.v1.RestoreService": (GATEWAY,),
    "twinmesh.ingest.v1.RawMessageService": (GATEWAY,),
    "twinmesh.ingest.v1.ConnectionService": ("auth_svc", "twin_svc"),
}
