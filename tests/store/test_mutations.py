"""Spoilt model files and checkpoints: each is refused with its own error, or holds a model that is one.

The check of what is let in shares nothing with the package's own.
"""

from __future__ import annotations

import io
import multiprocessing
import resource
import signal
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

import daskgmm
from daskgmm.cli.inputs import load_either
from daskgmm.errors import CheckpointError, DataError, ModelFileError
from tests import mutations
from tests.mutations import X

SECONDS, MEGABYTES = 10, 300  # of the processor for a file, and beyond what a sound one takes
WORKERS = 2

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no resource module, no alarm")


def assert_is_a_mixture(model: Any) -> None:
    """From the definitions: proportions, means, covariances, and factors that are theirs."""
    k, d = model.means_.shape
    assert (k, model.covariance_type) == (model.n_components, model.mixture_.covariance.structure.name)
    assert model.weights_.shape == (k,)
    assert (model.weights_ >= 0).all()
    assert abs(model.weights_.sum() - 1) < 1e-5
    dense: dict[str, Any] = {
        "full": np.asarray,
        "tied": lambda v: v[None],
        "diag": lambda v: [np.diag(row) for row in v],
        "spherical": lambda v: [value * np.eye(d) for value in v],
    }
    covariances, precisions = (
        np.asarray(dense[model.covariance_type](values)) for values in (model.covariances_, model.precisions_)
    )
    assert np.isfinite(model.means_).all()
    assert (np.linalg.eigvalsh(covariances) > 0).all()
    apart = np.abs(covariances @ precisions - np.eye(d)).max(axis=(1, 2))
    assert (apart < 1e-10 * np.linalg.cond(covariances)).all()
    with np.errstate(over="ignore"):
        near = model.means_[model.weights_ > 0][:1] + np.zeros((3, d))
    np.testing.assert_allclose(model.predict_proba(near).sum(axis=1), 1, rtol=1e-9)
    assert np.isfinite(model.score_samples(near)).all()


def assert_is_a_model(model: Any, folder: Path) -> None:
    """It is a mixture, or rows that wait to be one; it can be saved, and learn."""
    paths = folder / "one", folder / "other"
    model.save(paths[0])
    daskgmm.load(paths[0]).save(paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if hasattr(model, "mixture_"):
        assert_is_a_mixture(model)
    if hasattr(model, "partial_fit"):
        try:
            model.partial_fit(np.tile(X[:, :1], model.n_features_in_))
        except DataError:  # rows or names that are others than before; too large
            return
        if hasattr(model, "mixture_"):
            assert np.isfinite(model.means_).all()


@cache
def sound(what: str) -> dict[Any, bytes]:
    """Files to spoil, and for each the fit that goes on from it."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: dict[Any, bytes] = getattr(mutations, what)(Path(folder))
        return found


def spoil(what: str, number: int) -> tuple[Any, bytes, bytes]:
    """The name of a sound file, its content, and what it becomes."""
    random, whole = np.random.default_rng([number, len(what)]), sound(what)
    names = list(whole)
    name, other = names[number % len(names)], names[random.integers(len(names))]
    return name, whole[name], mutations.spoilt(whole[name], whole[other], random)


def same(content: bytes, other: bytes) -> bool:
    """Whether two files hold the same, in whatever bytes."""
    with np.load(io.BytesIO(content)) as a, np.load(io.BytesIO(other)) as b:
        return {n: a[n].tobytes() for n in a.files} == {n: b[n].tobytes() for n in b.files}


def try_model(_: Any, content: bytes, changed: bytes, folder: Path) -> str:
    path = folder / "m.npz"
    path.write_bytes(changed)
    try:
        model = daskgmm.load(path)
    except ModelFileError as error:
        return "refused" if str(path) in str(error) else f"a file without a name: {error}"
    assert_is_a_model(model, folder)
    return "same" if _is_same(content, changed) else "sound"


def try_checkpoint(source: Any, content: bytes, changed: bytes, folder: Path) -> str:
    (name, _), path = source, folder / "c"
    path.write_bytes(changed)
    try:
        load_either(str(path))
    except DataError:
        with pytest.raises(CheckpointError):
            mutations.fit(name, path)
        assert path.read_bytes() == changed
        return "refused"
    try:
        model = mutations.fit(name, path)
    except DataError:  # of other settings, or a fit that fails from there
        return "refused"
    assert_is_a_mixture(model)
    return "same" if _is_same(content, changed) else "sound"


def _is_same(content: bytes, changed: bytes) -> bool:
    try:
        return same(content, changed)
    except Exception:  # NumPy reads less than we do
        return False


TRIALS = {"models": try_model, "checkpoints": try_checkpoint}


def trial(what: str, number: int) -> tuple[int, str, float]:
    """What comes of one spoilt file, and the most megabytes that this process ever had."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole_and_spoilt = spoil(what, number)
        before = signal.signal(signal.SIGPROF, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            found = TRIALS[what](*whole_and_spoilt, Path(folder))
        except KeyboardInterrupt:
            found = f"took {SECONDS} s"
        except BaseException as error:  # an assertion, or what is no typed error
            found = f"{type(error).__name__}: {error}"[:300]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
    return number, found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def warm(what: str) -> float:
    """Megabytes of a process that has read, fitted and spoilt every kind of file."""
    whole = sound(what)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in whole.values():
            path = Path(folder) / "f"
            path.write_bytes(content)
            if what == "models":
                assert_is_a_model(daskgmm.load(path), Path(folder))
            else:
                load_either(str(path))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def count(what: str, n: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        before = max(pool.map(warm, [what] * WORKERS))
        found = list(pool.map(partial(trial, what), range(n), chunksize=10))
    counts = Counter(outcome for _, outcome, _ in found)
    peak = max(megabytes for *_, megabytes in found) - before
    with capsys.disabled():
        print(f"\n{what}: {dict(counts.most_common(8))}; {peak:.0f} MB more than sound files")
    wrong = [(number, outcome) for number, outcome, _ in found if outcome not in ("refused", "same", "sound")]
    assert wrong == []
    assert counts["refused"] > n / 2
    assert peak < MEGABYTES


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("what", "n"), [("models", 2000), ("checkpoints", 1000)])
def test_spoilt_files_are_refused_or_sound(what: str, n: int, capsys: pytest.CaptureFixture[str]) -> None:
    count(what, n, capsys)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("what", "n"), [("models", 80), ("checkpoints", 40)])
def test_some_spoilt_files(what: str, n: int) -> None:
    found = [trial(what, 5000 + number) for number in range(n)]
    assert [(number, told) for number, told, _ in found if told not in ("refused", "same", "sound")] == []


# Infinity is no larger than infinity; what the M-step does not read of a scatter is read by whoever looks at it.
@pytest.mark.parametrize(("what", "number"), [("models", 1706), ("checkpoints", 65)])
def test_a_large_factor_and_a_lopsided_scatter_are_refused(what: str, number: int) -> None:
    assert trial(what, number)[1] == "refused"
