"""Tenants and the people in them: how they come in, and what they may do."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from auth_svc.app.common import SERVICE, Common, repeating
from auth_svc.jwks_reader import jwks_reader
from auth_svc.new_passwords import NewPasswords
from auth_svc.servicers.roles import RoleServicer
from auth_svc.servicers.sessions import SessionServicer
from auth_svc.servicers.tenant_deletion import TenantDeletionServicer
from auth_svc.servicers.tenants import TenantServicer
from auth_svc.servicers.tokens import TokenServicer
from auth_svc.servicers.users import UserServicer
from auth_svc.sessions import Sessions
from auth_svc.stores.rights import RightsStore
from auth_svc.stores.sessions import SessionStore
from auth_svc.stores.tenant_deletion import TenantDeletionStore
from auth_svc.stores.tenants import TenantStore
from auth_svc.stores.users import UserStore
from auth_svc.tenant_deletion import TenantDeletions
from auth_svc.tenant_roles import TenantRoles
from auth_svc.tenants import Tenants
from auth_svc.token_exchange import RELOAD_EVERY_S, TokenExchange
from auth_svc.users import Users
from meshkit.addresses import Allowed
from meshkit.outbound import outbound
from meshkit.server import Registration
from meshkit.tenant_deletion import TenantSweep
from twinmesh.auth.v1 import (
    role_service_pb2_grpc,
    session_service_pb2_grpc,
    tenant_deletion_service_pb2_grpc,
    tenant_service_pb2_grpc,
    token_service_pb2_grpc,
    user_service_pb2_grpc,
)


@asynccontextmanager
async def running(common: Common) -> AsyncIterator[Sequence[Registration]]:
    """Yield what is served of them; tenants that are deleted go while the context is open."""
    new_passwords = NewPasswords(hash_password=common.passwords.hash, clock=common.clock)
    deletion_store = TenantDeletionStore(pool=common.pool)
    deletions = TenantDeletions(store=deletion_store, clock=common.clock)
    sweep = TenantSweep(
        closed=partial(deletions.all, SERVICE),
        delete=deletion_store.delete_rows,
        report=partial(deletions.report, SERVICE),
    )
    tenants = TenantStore(pool=common.pool)
    async with _federated(common, tenants) as federated, sweep.sweeping():
        yield [
            *_users(common, new_passwords),
            federated,
            Registration(
                "twinmesh.auth.v1.TenantService",
                tenant_service_pb2_grpc.add_TenantServiceServicer_to_server,
                TenantServicer(
                    tenants=Tenants(
                        store=tenants,
                        new_passwords=new_passwords,
                        announce=common.announce,
                        clock=common.clock,
                    )
                ),
            ),
            Registration(
                "twinmesh.auth.v1.TenantDeletionService",
                tenant_deletion_service_pb2_grpc.add_TenantDeletionServiceServicer_to_server,
                TenantDeletionServicer(deletions=deletions),
            ),
        ]


def _users(common: Common, new_passwords: NewPasswords) -> Sequence[Registration]:
    accounts, rights = UserStore(pool=common.pool), RightsStore(pool=common.pool)
    sessions = Sessions(
        users=accounts,
        sessions=SessionStore(pool=common.pool),
        verify_password=common.passwords.verify,
        limits=common.limits,
        access_tokens=common.access_tokens,
        announce=common.announce,
        mesh_secret=common.settings.root_secret,
        clock=common.clock,
    )
    users = Users(
        store=rights,
        accounts=accounts,
        verify_password=common.passwords.verify,
        limits=common.limits,
        new_passwords=new_passwords,
        announce=common.announce,
        clock=common.clock,
    )
    roles = TenantRoles(store=rights, announce=common.announce, clock=common.clock)
    return (
        Registration(
            "twinmesh.auth.v1.SessionService",
            session_service_pb2_grpc.add_SessionServiceServicer_to_server,
            SessionServicer(sessions=sessions, jwks=common.key_ring.jwks),
        ),
        Registration(
            "twinmesh.auth.v1.UserService",
            user_service_pb2_grpc.add_UserServiceServicer_to_server,
            UserServicer(users=users),
        ),
        Registration(
            "twinmesh.auth.v1.RoleService",
            role_service_pb2_grpc.add_RoleServiceServicer_to_server,
            RoleServicer(roles=roles),
        ),
    )


@asynccontextmanager
async def _federated(common: Common, tenants: TenantStore) -> AsyncIterator[Registration]:
    """Take tokens of identity providers while the context is open."""
    async with outbound(Allowed.parse(common.settings.outbound_allowed)) as outside:
        token_exchange = TokenExchange(
            path=common.settings.issuers,
            read_jwks=jwks_reader(outside),
            find_tenant=tenants.get,
            access_tokens=common.access_tokens,
            limits=common.limits,
            clock=common.clock,
        )
        async with repeating("issuers", token_exchange.refresh, every_s=RELOAD_EVERY_S):
            yield Registration(
                "twinmesh.auth.v1.TokenService",
                token_service_pb2_grpc.add_TokenServiceServicer_to_server,
                TokenServicer(token_exchange=token_exchange),
            )
