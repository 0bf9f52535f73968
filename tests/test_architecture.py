"""The architecture: imports point down and stand at the top, kinds are told in tables, files and functions are
short, and nobody reaches inside an estimator.
"""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

from daskgmm.estimators.parameters import ESTIMATORS
from daskgmm.fit.starts import STARTS
from daskgmm.model.structure import STRUCTURES

ROOT = Path(__file__).parent.parent
PACKAGE, TESTS = ROOT / "daskgmm", ROOT / "tests"

# What each room of the house may import beside itself: those below it.
BASE = {"_typing", "errors"}
ALLOWED = {
    "_typing": set(),
    "errors": set(),
    "model": BASE,
    "compute": BASE,
    "store": BASE | {"model", "compute"},
    "fit": BASE | {"model", "compute", "store"},
    "estimators": BASE | {"model", "compute", "store", "fit"},
    "display": BASE | {"model", "fit", "estimators"},
    "cli": BASE | {"model", "compute", "store", "fit", "estimators", "display"},
    "__main__": {"cli"},
}
# Installed by an extra, so not there for everyone.
OPTIONAL = {"matplotlib", "PIL", "xarray", "pandas", "polars", "s3fs", "obstore", "fsspec", "zarrs"}
SCHEDULER = {"distributed", "dask.threaded", "dask.multiprocessing"}
# Lines, at most.
FILE, KERNEL_FILE, BODY = 400, 320, 45


def module(path: Path) -> str:
    """The name that a file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    """The room of the house a module is in: the first name below the package."""
    return [*name.split("."), ""][1]


MODULES = {module(path): path for path in sorted(PACKAGE.rglob("*.py"))}
DEEP = {name: path for name, path in MODULES.items() if room(name) in ("model", "compute", "store", "fit")}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def names(node: ast.AST) -> list[str]:
    """Full names of what an import statement imports; none for other nodes."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        assert node.module
        full = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in MODULES else node.module for name in full]
    return []


def typing_only(path: Path) -> set[ast.AST]:
    """Nodes under ``if TYPE_CHECKING``, which never run."""
    return {
        node
        for block in ast.walk(tree(path))
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }


def imports(path: Path, run: bool = False) -> set[str]:
    """What a file imports; with ``run``, without what only annotations need."""
    left = typing_only(path) if run else set()
    return {name for node in ast.walk(tree(path)) if node not in left for name in names(node)}


def inner(path: Path, run: bool = False) -> set[str]:
    """Modules of the package that a file imports."""
    return {name for name in imports(path, run) if name.split(".")[0] == "daskgmm"}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_walk_finds_the_package() -> None:
    assert set(ALLOWED) == {room(name) for name in MODULES} - {""}
    found = inner(MODULES["daskgmm.estimators.gaussian_mixture"])
    assert {"daskgmm.fit.batch", "daskgmm.compute.rows", "daskgmm.estimators.fitting"} <= found
    assert "daskgmm.compute.sources.zarr" in inner(MODULES["daskgmm.compute.sources"])


# Imports


def test_imports_point_down() -> None:
    for name, path in MODULES.items():
        if (own := room(name)) == "":
            continue  # the public face
        for other in inner(path):
            if own == "cli" and other == "daskgmm":
                continue  # for the version and the estimators
            assert room(other) in ALLOWED[own] | {own}, f"{name} imports {other}"


def test_no_cycles() -> None:
    graph = {name: inner(path, run=True) & set(MODULES) - {name} for name, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_imports_stand_at_the_top() -> None:
    for name, path in MODULES.items():
        for function in ast.walk(tree(path)):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                for node in ast.walk(function):
                    for other in names(node):
                        assert other.split(".")[0] in OPTIONAL, f"{name}: {other} inside a function"


def test_optional_libraries_are_never_imported_at_the_top() -> None:
    for name, path in MODULES.items():
        for node in tree(path).body:
            for other in names(node):
                assert other.split(".")[0] not in OPTIONAL - {"fsspec"}, f"{name}: {other}"


def test_the_model_knows_no_dask() -> None:
    for name, path in MODULES.items():
        if room(name) == "model":
            outer = {other.split(".")[0] for other in imports(path)}
            assert not outer & {"dask", "distributed", "zarr", "sklearn"}, name


def test_the_engines_alone_know_the_scheduler() -> None:
    knowing = {
        name
        for name, path in MODULES.items()
        for other in imports(path)
        # How much memory there is concerns whoever reads.
        if room(name) != "cli"
        and other != "distributed.system"
        and any(other == s or other.startswith(f"{s}.") for s in SCHEDULER)
    }
    assert knowing == {f"daskgmm.compute.{name}" for name in ("threads", "cluster", "engines")}


# Kinds


def test_no_kind_is_compared_with_its_name() -> None:
    # The entries of `STRUCTURES` and `STARTS` say what differs.
    for name, path in MODULES.items():
        kinds = {*STRUCTURES, *([] if name == "daskgmm.fit.starts" else STARTS)}
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Compare):
                told = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)} & kinds
                assert not told, f"{name}, line {node.lineno}: compares with {told}"


def test_the_name_of_a_kind_is_looked_up_by_the_estimators_alone() -> None:
    for name, path in DEEP.items():
        for node in ast.walk(tree(path)):
            known = getattr(node, "id", getattr(node, "attr", getattr(node, "arg", None)))
            assert known != "covariance_type", f"{name}, line {getattr(node, 'lineno', '?')}"


# Sizes


def test_files_are_short() -> None:
    for name, path in MODULES.items():
        most = KERNEL_FILE if name.startswith("daskgmm.model.kernels") else FILE
        assert len(path.read_text().splitlines()) <= most, name


def test_bodies_of_functions_are_short() -> None:
    for name, path in MODULES.items():
        for function in functions(path):
            body = function.body[ast.get_docstring(function) is not None :]
            if body:
                last = body[-1].end_lineno
                assert last is not None
                assert last - body[0].lineno < BODY, f"{name}: {function.name}"


# Estimators


@cache
def inside() -> frozenset[str]:
    """Names of what is an estimator's own: underscore methods and attributes, those from scikit-learn too."""
    found = {name for kind in ESTIMATORS.values() for name in dir(kind)}
    for path in (PACKAGE / "estimators").glob("*.py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return frozenset(name for name in found if name.startswith("_") and not name.endswith("_"))


def reached(path: Path, own: frozenset[str]) -> Iterator[str]:
    """Where a file asks something other than itself for such a name, or hands one on as a string."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and node.attr in own:
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call):
            for argument in node.args:
                if isinstance(argument, ast.Constant) and argument.value in own:
                    yield f"line {node.lineno}: {ast.unparse(node)}"


def test_nobody_reaches_inside_an_estimator() -> None:
    others = [path for name, path in MODULES.items() if room(name) != "estimators"]
    for path in (*others, *sorted(TESTS.rglob("*.py"))):
        theirs = {"_get_param_names"}  # scikit-learn's only door to the parameters of a class without a value
        if path.is_relative_to(TESTS):  # which check what scikit-learn is told, too
            theirs |= {"_parameter_constraints", "_validate_params"}
        assert list(reached(path, inside() - theirs)) == [], module(path)


def test_what_is_inside_an_estimator() -> None:
    assert {"_fitted", "_rows", "_follow", "_answer", "_recipe", "_validate_params"} <= inside()
    assert {"fit", "_repr_html_", "__init__"} & inside() == set()
