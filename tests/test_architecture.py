"""The architecture: imports point down only, without cycles, and stand at the top of their files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "daskgmm"
FILES = sorted(PACKAGE.rglob("*.py"))

# Each may import from those to its left, and from its own floor.
ALLOWED = {
    "_typing": set(),
    "errors": set(),
    "model": {"_typing", "errors"},
    "compute": {"_typing", "errors"},
    "fit": {"_typing", "errors", "model", "compute"},
    "estimators": {"_typing", "errors", "model", "compute", "fit"},
    "cli": {"_typing", "errors", "model", "compute", "fit", "estimators"},
}
# Installed by an extra, so not there for everyone.
OPTIONAL = {"matplotlib", "PIL", "xarray", "pandas", "polars", "s3fs", "obstore", "fsspec", "zarrs"}
SCHEDULER = {"distributed", "dask.threaded", "dask.multiprocessing"}


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(name: str) -> str:
    """The room of the house a module is in: the first name below the package."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


MODULES = {module(path): path for path in FILES}


def names(node: ast.AST, path: Path) -> list[str]:
    """Full names of what an import statement imports; none for other nodes."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{path}:{node.lineno}: relative import"
        assert node.module
        full = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in MODULES else node.module for name in full]
    return []


def typing_only(tree: ast.Module) -> set[ast.AST]:
    """Nodes under ``if TYPE_CHECKING``, which never run."""
    return {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }


def imports(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Imports that run, with their statements."""
    tree = ast.parse(path.read_text())
    skipped = typing_only(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and node not in skipped:
            for name in names(node, path):
                yield name, node


def inner(path: Path) -> set[str]:
    """Modules of the package that a file imports."""
    return {name for name, _ in imports(path) if name.split(".")[0] == "daskgmm"}


def test_the_walk_finds_the_package() -> None:
    rooms = {"model", "compute", "fit", "estimators"}
    assert rooms <= {floor(name) for name in MODULES}
    found = inner(MODULES["daskgmm.estimators.gaussian_mixture"])
    assert "daskgmm.fit.em" in found


@pytest.mark.parametrize("name", [name for name in MODULES if name != "daskgmm"])
def test_imports_point_down(name: str) -> None:
    own = floor(name)
    assert own in ALLOWED, f"{name} is in no room of the house"
    for other in inner(MODULES[name]):
        if own == "cli" and other == "daskgmm":
            continue  # the public face, for the version and the estimators
        assert floor(other) in ALLOWED[own] | {own}, f"{name} imports {other}"


def test_no_cycles() -> None:
    graph = {name: inner(path) & set(MODULES) - {name} for name, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_imports_stand_at_the_top(name: str) -> None:
    path = MODULES[name]
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for node in ast.walk(function):
                for other in names(node, path):
                    assert other.split(".")[0] in OPTIONAL, f"{path}: {other} inside a function"


def test_optional_libraries_are_never_imported_at_the_top() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        for node in tree.body:
            for name in names(node, path):
                assert name.split(".")[0] not in OPTIONAL - {"fsspec"}, f"{path}: {name}"


def test_the_model_knows_no_dask() -> None:
    for name, path in MODULES.items():
        if floor(name) == "model":
            outer = {other.split(".")[0] for other, _ in imports(path)}
            assert not outer & {"dask", "distributed", "zarr", "sklearn"}, name


def test_the_engine_and_its_cluster_alone_know_the_scheduler() -> None:
    knowing = {
        name
        for name, path in MODULES.items()
        for other, _ in imports(path)
        if floor(name) != "cli" and any(other == s or other.startswith(f"{s}.") for s in SCHEDULER)
    }
    assert knowing == {"daskgmm.compute.engine", "daskgmm.compute.cluster"}


def test_covariance_type_is_looked_up_once() -> None:
    # Comparisons with the string are what the classes of covariance.py replace.
    for name, path in MODULES.items():
        if floor(name) in ("model", "compute", "fit"):
            assert "covariance_type" not in path.read_text(), name
