"""Who may call auth_svc."""

from meshkit.callers import GATEWAY, Callers

_SERVICES = ("asset_svc", "ingest_svc", "twin_svc", "maintenance")

CALLERS: Callers = {
    "twinmesh.auth.v1.SessionService": (GATEWAY,),
    "twinmesh.auth.v1.SessionService/GetJwks": (GATEWAY, *_SERVICES),
    "twinmesh.auth.v1.TokenService": (GATEWAY,),
    "twinmesh.auth.v1.ApiKeyService": (GATEWAY,),
    "twinmesh.auth.v1.UserService": (GATEWAY,),
    "twinmesh.auth.v1.RoleService": (GATEWAY,),
    "twinmesh.auth.v1.TenantService": (GATEWAY,),
    "twinmesh.auth.v1.DeviceCertificateService": (GATEWAY,),
    "twinmesh.auth.v1.AuditEventService": (GATEWAY,),
    "twinmesh.mesh.v1.HealthService": (GATEWAY,),
    "twinmesh.auth.v1.RevocationService": _SERVICES,
    "twinmesh.auth.v1.ApiKeyScopeService": ("ingest_svc",),
    "twinmesh.auth.v1.TenantDeletionService": ("asset_svc", "maintenance"),
    "twinmesh.auth.v1.AuditService": _SERVICES,
    "envoy.service.accesslog.v3.AccessLogService": (GATEWAY,),
    # Streams take API keys as well, which prove themselves; of certificates only the gateway is believed.
    "envoy.service.auth.v3.Authorization": (GATEWAY, "ingest_svc"),
}
