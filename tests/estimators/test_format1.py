"""Files of format 1, written by daskgmm 0.1.0: the same parameters, settings, answers, and steps learnt on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import daskgmm
from daskgmm import GaussianMixture, MiniBatchGaussianMixture

DATA = Path(__file__).parents[1] / "data"
EXPECTED = json.loads((DATA / "format1.json").read_text(encoding="utf-8"))
ROWS = np.array(EXPECTED["rows"])
FRAME = pd.DataFrame(ROWS, columns=EXPECTED["names"])
CLASSES: dict[str, Any] = {
    "GaussianMixture": GaussianMixture,
    "MiniBatchGaussianMixture": MiniBatchGaussianMixture,
}


@pytest.fixture(params=EXPECTED["models"])
def name(request: pytest.FixtureRequest) -> Any:
    return request.param


def place(name: str) -> Path:
    return DATA / "format1" / f"{name}.npz"


def rows_for(told: Any) -> Any:
    return FRAME if told["names"] else ROWS


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with arrays as lists."""
    return {name: np.asarray(value).tolist() for name, value in settings.items()}


def test_both_classes_and_all_kinds_are_there() -> None:
    found = {(told["class"], told["settings"]["covariance_type"]) for told in EXPECTED["models"].values()}
    assert found == {(name, kind) for name in CLASSES for kind in ("full", "tied", "diag", "spherical")}


@pytest.mark.parametrize("by_class", [False, True])
def test_parameters_and_settings_are_the_same(name: str, by_class: bool) -> None:
    told = EXPECTED["models"][name]
    load = CLASSES[told["class"]].load if by_class else daskgmm.load
    model = load(place(name))
    assert type(model) is CLASSES[told["class"]]
    for title in ("weights_", "means_", "covariances_", "precisions_cholesky_"):  # as they are in the file
        np.testing.assert_array_equal(getattr(model, title), told["arrays"][title], err_msg=title)
    np.testing.assert_allclose(model.precisions_, told["arrays"]["precisions_"], rtol=1e-13)
    for title, value in told["numbers"].items():
        assert getattr(model, title) == value, title
    # Parameters that came later are at their defaults.
    assert plain(model.get_params()) == plain({**type(model)().get_params(), **told["settings"]})
    assert getattr(model, "feature_names_in_", np.array([])).tolist() == told["names"]


def test_answers_are_the_same(name: str) -> None:
    told = EXPECTED["models"][name]
    model, rows = daskgmm.load(place(name)), rows_for(told)[:8]
    for query, answer in told["answers"].items():
        np.testing.assert_allclose(getattr(model, query)(rows), answer, rtol=1e-12, err_msg=query)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_an_online_model_learns_on_as_it_would_have(kind: str) -> None:
    told = EXPECTED["models"][f"online_{kind}"]
    model = MiniBatchGaussianMixture.load(place(f"online_{kind}")).partial_fit(rows_for(told)[::-1])
    for title, value in told["after"].items():
        # The prior of online covariances is another by now.
        rtol, atol = (0.3, 0.03) if title == "covariances_" else (1e-12, 1e-14)
        np.testing.assert_allclose(getattr(model, title), value, rtol=rtol, atol=atol, err_msg=title)


def test_rows_that_waited_for_the_start_still_do() -> None:
    model = daskgmm.load(place("waiting"))
    assert not hasattr(model, "means_")
    assert (model.n_samples_seen_, model.n_batches_seen_, model.n_features_in_) == (20, 2, 2)
    assert model.feature_names_in_.tolist() == EXPECTED["names"]
    never_saved = MiniBatchGaussianMixture(**model.get_params())
    never_saved.partial_fit(FRAME[:7], sample_weight=np.arange(1.0, 8)).partial_fit(FRAME[7:20])
    for stream in (model, never_saved):
        stream.partial_fit(FRAME[20:])
    for title in ("weights_", "means_", "covariances_", "n_samples_seen_", "n_batches_seen_"):
        np.testing.assert_array_equal(getattr(model, title), getattr(never_saved, title), err_msg=title)
    assert model.next_row_ == len(ROWS)


def test_what_is_loaded_is_saved_in_the_format_of_today(name: str, tmp_path: Path) -> None:
    model = daskgmm.load(place(name))
    model.save(tmp_path / "m.npz")
    again = daskgmm.load(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz") as file:
        assert json.loads(str(file["header"]))["version"] == 2
    for title in ("weights_", "means_", "covariances_", "precisions_cholesky_", "lower_bounds_", "n_passes_"):
        np.testing.assert_array_equal(getattr(again, title), getattr(model, title), err_msg=title)
