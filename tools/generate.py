"""Generates gen/ from proto/ and docs/permissions.md from both, or says where they have drifted apart.

    python -m tools.generate            # writes them
    python -m tools.generate --check    # writes nothing; exit status 1 on drift

Always generates into a temporary folder first, so that a failing plugin leaves gen/
as it was, and running programs never find it half empty.
"""

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import third_party_protos

ROOT = Path(__file__).parents[1]
GENERATED = ROOT / "gen"
PERMISSIONS = ROOT / "docs/permissions.md"
DESCRIPTOR_SET = "twinmesh.binpb"
OPENAPI = "openapi/twinmesh.json"


def run_buf(*arguments: str) -> None:
    """Runs buf in the checkout, with this environment's tools first on the path.

    Raises:
        SystemExit: buf failed; its own words are printed.
    """
    tools = Path(sys.prefix, "bin")
    search_path = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        [tools / "buf", *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": search_path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}buf {arguments[0]} failed")


def generate(output: Path) -> None:
    """Writes all generated files into a folder: Python code, the descriptor set, the OpenAPI document.

    The descriptor set holds our packages, everything they import, and the details of
    errors; Envoy's transcoder reads it, and `buf curl --schema` may.
    """
    run_buf("generate", "--output", str(output))
    wanted = ("proto/twinmesh", "third_party/proto/google/rpc/error_details.proto")
    paths = [argument for path in wanted for argument in ("--path", path)]
    run_buf("build", *paths, "--exclude-source-info", "--output", str(output / DESCRIPTOR_SET))
    with tempfile.TemporaryDirectory() as directory:
        # The same with the contract's comments.
        commented = Path(directory, DESCRIPTOR_SET)
        run_buf("build", *paths, "--output", str(commented))
        write_openapi(commented, output)


def write_openapi(commented: Path, output: Path) -> None:
    """Writes the OpenAPI document of a descriptor set, by the Python code that was generated beside it.

    Raises:
        SystemExit: it could not be made; what failed is printed.
    """
    target = output / OPENAPI
    target.parent.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tools.openapi", commented, target],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(output)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stderr}the OpenAPI document could not be made")


def drift(fresh: Path, committed: Path) -> list[str]:
    """Returns one line for each file that is missing, stale or different in `committed`."""
    expected, present = _files(fresh), _files(committed)
    lines = [f"missing   gen/{name}" for name in sorted(expected - present)]
    lines += [f"stale     gen/{name}" for name in sorted(present - expected)]
    for name in sorted(expected & present):
        if not filecmp.cmp(fresh / name, committed / name, shallow=False):
            lines.append(f"different gen/{name}")
    return lines


def install(fresh: Path, committed: Path) -> None:
    """Makes `committed` equal to `fresh`, touching only files that differ."""
    expected, present = _files(fresh), _files(committed)
    for name in sorted(present - expected):
        (committed / name).unlink()
    for name in sorted(expected):
        target = committed / name
        if name in present and filecmp.cmp(fresh / name, target, shallow=False):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        # Moved into place whole: others may be importing it.
        shutil.copy(fresh / name, target.with_name(target.name + ".new"))
        target.with_name(target.name + ".new").replace(target)


def permissions_page(descriptor_set: Path) -> str:
    """Returns what docs/permissions.md says of a descriptor set."""
    # Imports gen/, which has to be there by now.
    from tools import permissions  # noqa: PLC0415

    return permissions.page(descriptor_set)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing, fail on drift")
    check = parser.parse_args().check
    third_party_protos.main([])
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        generate(fresh)
        if not check:
            install(fresh, GENERATED)
            PERMISSIONS.write_text(permissions_page(fresh / DESCRIPTOR_SET), encoding="utf-8")
        elif lines := drift(fresh, GENERATED):
            sys.exit(
                "\n".join([*lines, "gen/ does not follow from proto/: run `make generate` and commit gen/"])
            )
        elif permissions_page(fresh / DESCRIPTOR_SET) != _text(PERMISSIONS):
            sys.exit("docs/permissions.md does not follow from contract and roles: run `make generate`")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _files(directory: Path) -> set[str]:
    return {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


if __name__ == "__main__":
    main()
