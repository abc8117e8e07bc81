"""The command `twinmesh`: a registry, every command lives in a module of its own."""

import typer

from twinmesh_cli import config, load, login, migrations, query, status, trace, up

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
