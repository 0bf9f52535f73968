"""A fit says what it has cost, by purpose, while it runs and afterwards."""

import pickle
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr

from daskgmm import GaussianMixture, MiniBatchGaussianMixture, watching
from daskgmm.fit.accounting import Ledger, Spent
from daskgmm.fit.events import Reached
from tests.listeners import SEEDED, Heard, stop

X = np.random.default_rng(0).normal(size=(400, 2)) + 5 * (np.arange(400) % 2)[:, None]
SETTINGS: dict[str, Any] = {"random_state": 0, "tol": 0.0, "max_iter": 3}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def place(tmp_path: Path) -> str:
    zarr.create_array(tmp_path / "x.zarr", data=X, chunks=(50, 2))
    return str(tmp_path / "x.zarr")


@pytest.mark.parametrize(("room", "reads"), [("1 GiB", 0), ("0", 3)])
def test_what_a_batch_fit_costs(room: str, reads: int, place: str) -> None:
    ledger, heard = Ledger(), Heard()
    with dask.config.set({"daskgmm.memory-limit": room}), watching(ledger, heard):
        model = GaussianMixture(2, **SETTINGS).fit(place)
    found = model.accounting_
    assert found == ledger.to_dict()
    assert list(found) == ["survey", "seeding", "iterations", "total"]
    parts = {
        name: tuple(found[name][key] for key in ("passes", "bytes", "bytes_read", "bytes_kept")) for name in found
    }
    size = X.nbytes
    assert parts["survey"] == (1, size, size, 0)
    assert parts["seeding"] == (0, 0, 0, 0)
    assert parts["iterations"] == (3, 3 * size, reads * size, (3 - reads) * size)
    assert parts["total"] == (model.n_passes_, 4 * size, (1 + reads) * size, (3 - reads) * size)
    for key in ("seconds", "seconds_reading", "seconds_computing"):
        assert found["total"][key] == pytest.approx(sum(found[name][key] for name in list(found)[:3]))
        assert found["survey"][key] > 0
    # Told before the state that it led to.
    order = [type(event) for event in heard.events if isinstance(event, (Spent, Reached))]
    assert order == [Reached, *[Spent, Reached] * 5]


def test_what_an_online_fit_costs(place: str) -> None:
    model = MiniBatchGaussianMixture(2, random_state=0, max_iter=2, tol=0).fit(place)
    found = {name: (part["passes"], part["bytes_read"]) for name, part in model.accounting_.items()}
    size = X.nbytes
    assert found == {"survey": (1, size), "seeding": (0, 0), "iterations": (2, 2 * size), "total": (3, 3 * size)}
    assert model.partial_fit(X).accounting_ == {}


def test_a_fit_that_goes_on_counts_its_own_passes(place: str, tmp_path: Path) -> None:
    model = GaussianMixture(2, checkpoint=tmp_path / "fit.ckpt", **SETTINGS)
    with watching(stop(SEEDED + 2)), pytest.raises(KeyboardInterrupt):
        model.fit(place)
    assert model.accounting_["iterations"]["passes"] == 2
    model.fit(place)
    assert (model.n_passes_, model.accounting_["total"]["passes"]) == (4, 1)
    assert list(model.accounting_) == ["iterations", "total"]


def test_no_file_tells_what_it_cost(place: str, tmp_path: Path) -> None:
    models = [GaussianMixture(2, **SETTINGS).fit(place) for _ in range(2)]
    for number, model in enumerate(models):
        model.save(tmp_path / f"{number}.npz")
        assert pickle.loads(pickle.dumps(model)).accounting_ == model.accounting_
    assert (tmp_path / "0.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()
    assert GaussianMixture.load(tmp_path / "0.npz").accounting_ == {}
    assert not hasattr(GaussianMixture(), "accounting_")


def test_a_score_is_told(place: str) -> None:
    model, ledger = GaussianMixture(2, **SETTINGS).fit(X), Ledger()
    with watching(ledger):
        model.score(place)
        model.bic(X)
    assert ledger.to_dict()["score"] | {"seconds": 0, "seconds_reading": 0, "seconds_computing": 0} == {
        **{"passes": 2, "bytes": 2 * X.nbytes, "bytes_read": X.nbytes, "bytes_kept": 0},
        **{"seconds": 0, "seconds_reading": 0, "seconds_computing": 0},
    }


def test_verbose_tells_the_total(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    GaussianMixture(2, verbose=1, **SETTINGS).fit(place)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("total: 4 passes over 25.00 kiB, 18.75 kiB of it from memory, 6.25 kiB read; ")
