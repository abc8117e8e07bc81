"""The command `twinmesh`: a registry, every command lives in a module of its own."""

import logging

import structlog
import typer

from twinmesh_cli import bench, config, load, login, migrations, query, status, trace, up

# Commands tell people what happens; what libraries log for services would come between.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))

app = typer.Typer(
    help="Runs and uses a Twinmesh on this machine.", no_args_is_help=True, add_completion=False
)

app.command()(up.up)
app.command()(up.down)
app.command()(status.status)
app.command()(config.config)
app.add_typer(migrations.migrate_app, name="migrate")
app.command()(migrations.seed)
app.command()(trace.trace)
app.command()(login.login)
app.command()(login.logout)
app.command()(load.load)
app.command()(query.query)
app.command()(bench.bench)
