"""The command `twinmesh`: a registry, every command lives in a module of its own."""

import logging
import os
import sys

import structlog
import typer

from twinmesh_cli import (
    api_keys,
    audit,
    bench,
    ca,
    certs,
    config,
    deadletters,
    events,
    export,
    keys,
    limits,
    load,
    login,
    metrics,
    migrations,
    query,
    raw,
    receipt,
    restart,
    restore,
    roles,
    simulate,
    sql_user,
    status,
    storage,
    tail,
    tenants,
    trace,
    up,
    users,
)

# Commands tell people what happens; what libraries log for services would come between, and what is
# written into a file is an answer alone.
structlog.configure(
    wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    logger_factory=structlog.PrintLoggerFactory(sys.stderr),
)

app = typer.Typer(
    help="Runs and uses a Twinmesh on this machine.", no_args_is_help=True, add_completion=False
)


@app.callback()
def reach_this_machine_directly() -> None:
    """Keeps what the environment says of proxies off this machine's own connections, children's too.

    gRPC reads small letters only, and of these two variables only the first that is set.
    """
    for name in ("no_grpc_proxy", "no_proxy"):
        apart = os.environ.get(name) or (os.environ.get("NO_PROXY") if name == "no_proxy" else None)
        if apart or name == "no_proxy":
            os.environ[name] = ",".join(filter(None, (apart, "localhost", "127.0.0.1", "::1")))


app.command()(up.up)
app.command()(up.down)
app.command()(restart.restart)
app.command()(status.status)
app.command()(config.config)
app.add_typer(migrations.migrate_app, name="migrate")
app.add_typer(ca.ca_app, name="ca")
app.add_typer(certs.certs_app, name="certs")
app.add_typer(sql_user.sql_user_app, name="sql-user")
app.command()(migrations.seed)
app.command()(trace.trace)
app.command()(metrics.metrics)
app.command()(login.login)
app.command()(login.logout)
app.add_typer(keys.keys_app, name="keys")
app.add_typer(tenants.tenants_app, name="tenants")
app.add_typer(api_keys.api_keys_app, name="api-keys")
app.add_typer(users.users_app, name="users")
app.add_typer(roles.roles_app, name="roles")
app.add_typer(audit.audit_app, name="audit")
app.add_typer(limits.limits_app, name="limits")
app.add_typer(storage.storage_app, name="storage")
app.command()(load.load)
app.command()(query.query)
app.command()(export.export)
app.command()(receipt.receipt)
app.add_typer(raw.raw_app, name="raw")
app.add_typer(restore.restore_app, name="restore")
app.add_typer(deadletters.deadletters_app, name="deadletters")
app.add_typer(events.events_app, name="events")
app.command()(tail.tail)
app.command()(simulate.simulate)
app.command()(bench.bench)
