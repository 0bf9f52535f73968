"""What is compiled, what is kept on disk, and until when."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

from daskgmm.model import kernels
from daskgmm.model.kernels import compiling

FOLDER = Path(kernels.__file__).parent
PACKAGE = FOLDER.parents[1]


def run(code: str, root: Path, cache: Path, *arguments: str) -> str:
    """What a new process prints that imports from ``root`` and keeps compiled code in ``cache``."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(root)}
    # Python would take what it compiled of a file for as good as that, where both have one size and one second.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-c", code, *arguments]
    # From there, too: the folder that a process starts in comes first.
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=140)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What entry points find, in bits: those that are named, for some kinds of covariance.
BITS = """
import hashlib
import sys
import numpy as np
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.structure import STRUCTURES

random = np.random.default_rng(0)
x, resp = random.normal(size=(700, 5)), random.dirichlet(np.ones(3), size=700)
digest = hashlib.sha256()
for name in sys.argv[2].split():
    structure = STRUCTURES[name]
    one = np.eye(5) if structure.form.axes == 2 else np.ones(5)
    values = structure.stored(one if structure.shared else np.stack([one] * 3), 3, 5)
    mixture = Mixture(np.full(3, 1 / 3), x[:3], structure.form.of(structure, values))
    for entry in sys.argv[1].split():
        if entry == "posterior":
            digest.update(mixture.responsibilities(x).tobytes())
            continue
        s = mixture.expectation(x) if entry == "expectation" else moments(structure, x, None, resp, 3)
        for part in (s.weight, s.shift, s.scatter, s.log_likelihood):
            digest.update(np.ascontiguousarray(part).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("entries", "kinds"),
    [
        pytest.param("posterior", "diag", marks=pytest.mark.slow),
        pytest.param("expectation moments posterior", "full tied diag", marks=pytest.mark.slow),
    ],
)
def test_compiled_anew_or_read_from_the_cache_gives_the_same_bits(
    entries: str, kinds: str, tmp_path: Path
) -> None:
    # One worker compiles, the next finds the result on disk: they must agree, or a fit would depend on
    # which worker came first. A helper that is linked, not inlined, may come optimised in another way.
    found = [run(BITS, PACKAGE.parent, tmp_path, entries, kinds) for _ in range(2)]
    assert found[0]
    assert found[0] == found[1]


def test_code_of_others_may_be_compiled_while_a_fit_is_watched() -> None:
    """Loops that Numba lifts out of a function have no cache to tell them by."""

    def looping(n: int) -> tuple[int, object]:
        total = 0
        for i in range(n):
            total += i
        return total, object()

    told: list[None] = []
    with compiling.while_compiling(lambda: told.append(None)):
        lifted: Any = numba.jit(forceobj=True, looplift=True)(looping)
        assert lifted(4)[0] == 6
    assert told == []


def test_all_compiled_code_is_an_entry_point_that_is_kept_or_inlined() -> None:
    names = [f"{kernels.__name__}.{module.name}" for module in iter_modules([str(FOLDER)])]
    found: set[Any] = {
        value
        for module in map(import_module, [kernels.__name__, *names])
        for value in vars(module).values()
        if isinstance(value, Dispatcher)
    }
    kept = {dispatcher for dispatcher in found if isinstance(dispatcher._cache, compiling._FolderCache)}
    assert {dispatcher.__name__ for dispatcher in kept} >= {"_expectation", "_moments", "_posterior"}
    assert all(dispatcher.targetoptions.get("forceinline") for dispatcher in found - kept)
    assert found - kept
    for dispatcher in found:  # with these flags, Numba finds no NaN
        assert not {"nnan", "ninf", "fast"} & set(dispatcher.targetoptions["fastmath"])


# An entry point in one file, and a helper in another, as small as can be.
ENTRY = """
from daskgmm.model.kernels.compiling import compiled
from daskgmm.model.kernels.helper import helper

@compiled
def entry(x):
    return helper(x)
"""
HELPER = """
from daskgmm.model.kernels.compiling import inlined

@inlined
def helper(x):
    return {} * x
"""
CALL = """
from daskgmm.model.kernels.entry import entry
print(entry(1.5), sum(entry.stats.cache_hits.values()), sum(entry.stats.cache_misses.values()))
"""


@pytest.mark.timeout(300)
def test_code_is_kept_until_any_file_of_the_folder_changes(tmp_path: Path) -> None:
    """Numba looks at the file of an entry point alone: an edit to a helper elsewhere would not be seen."""
    root, cache = tmp_path / "root", tmp_path / "cache"
    folder = root / "daskgmm" / "model" / "kernels"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for place in (folder.parents[1], folder.parent):
        (place / "__init__.py").touch()  # nothing but the kernels is imported
    shutil.copy(PACKAGE / "_typing.py", folder.parents[1])
    (folder / "entry.py").write_text(ENTRY)
    helper = folder / "helper.py"

    def call(factor: str) -> list[str]:
        helper.write_text(HELPER.format(factor))
        return run(CALL, root, cache).split()

    assert call("2.0") == ["3.0", "0", "1"]  # compiled
    assert call("2.0") == ["3.0", "1", "0"]  # read from the disk: the text is the same, its time is not
    assert call("4.0") == ["6.0", "0", "1"]  # compiled anew


def test_rows_that_are_not_contiguous_cannot_be_taken_as_vectors() -> None:
    """Compiled code reads what is next in memory."""

    @numba.njit
    def transposed(x: Any, tile: Any) -> None:
        compiling.transpose(x, 0, 4, tile, 0, 0)

    x, tile = np.arange(32.0).reshape(4, 8), np.zeros((4, 4))
    transposed(np.ascontiguousarray(x[:, :4]), tile)
    np.testing.assert_array_equal(tile, x[:, :4].T)
    for bad, wanted in ((x[:, ::2], "C-contiguous"), (x.astype("f4"), "of the type of the work")):
        with pytest.raises(numba.TypingError, match=wanted):
            transposed(bad, tile)
