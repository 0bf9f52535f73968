"""The summary: one row for each component, heaviest first, in a table that fits a terminal."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import daskgmm
from daskgmm import GaussianMixture, MiniBatchGaussianMixture
from daskgmm.estimators.summary import spread
from tests.apart import D, K, rows_of
from tests.structures import KINDS

X = rows_of(0, 600)
FRAME = pd.DataFrame(X, columns=["salt", "warmth"])


def fitted(**settings: Any) -> GaussianMixture:
    model = GaussianMixture(K, random_state=0, **settings)
    model.fit(FRAME)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_those_of_the_fit_heaviest_first(kind: str) -> None:
    model = fitted(covariance_type=kind)
    found, order = model.summary(), np.argsort(-model.weights_)
    assert found.component.tolist() == order.tolist()
    assert (np.diff(found.weight) <= 0).all()
    np.testing.assert_array_equal(found.weight, model.weights_[order])
    np.testing.assert_allclose(found.rows, 600 * model.weights_[order])
    np.testing.assert_array_equal(found.mean, model.means_[order])
    drawn, label = model.sample(200_000)
    for i, j in enumerate(order):
        np.testing.assert_allclose(found.deviation[i], drawn[label == j].std(axis=0), rtol=0.02)
    assert found.features == ("salt", "warmth")
    assert all(found.nearest != found.component)
    assert ((found.overlap > 0) & (found.overlap < 0.1)).all()


def test_the_log_likelihood_of_rows_that_came_last_is_not_that_of_all() -> None:
    x = np.random.default_rng(0).normal(size=(700, 2))
    model = MiniBatchGaussianMixture(2, random_state=0).fit(x[:500])
    assert model.summary().facts["log_likelihood"] == model.lower_bound_
    told = model.extend(x).summary()
    assert told.facts["last_log_likelihood"] == model.lower_bound_
    assert "log_likelihood" not in told.facts
    assert "log-likelihood of the last rows" in " ".join(str(told).split())
    assert "last_log_likelihood" in model.partial_fit(x[:9]).summary().facts


def test_facts() -> None:
    model = fitted()
    facts = model.summary().facts
    assert facts["rows"] == 600
    assert facts["converged"] is True
    assert (facts["n_iter"], facts["n_passes"]) == (model.n_iter_, model.n_passes_)
    assert (facts["log_likelihood"], facts["bic"]) == (model.lower_bound_, model.bic_)
    given = GaussianMixture.from_parameters(model.weights_, model.means_, model.covariances_).summary()
    assert list(given.facts) == ["estimator", "n_components", "n_features", "covariance_type"]
    assert np.isnan(given.rows).all()
    assert given.features == ("0", "1")


def test_criteria_of_the_fit_are_those_of_the_parameters_before_its_last_update() -> None:
    weight = np.random.default_rng(1).uniform(1, 3, size=600)
    before = GaussianMixture(K, random_state=0, tol=0, max_iter=3).fit(X, sample_weight=weight)
    after = GaussianMixture(K, random_state=0, tol=0, max_iter=4).fit(X, sample_weight=weight)
    assert after.bic_ == pytest.approx(before.bic(X, sample_weight=weight), rel=1e-12)
    assert after.aic_ == pytest.approx(before.aic(X, sample_weight=weight), rel=1e-12)
    assert after.total_weight_ == pytest.approx(weight.sum(), rel=1e-14)
    none = GaussianMixture(K, random_state=0, max_iter=0).fit(X)
    assert np.isnan([none.bic_, none.aic_, none.total_weight_]).all()


def test_they_are_kept_in_files_and_checkpoints(tmp_path: Path) -> None:
    model = fitted(checkpoint=tmp_path / "c")
    model.save(tmp_path / "m.npz")
    for again in (daskgmm.load(tmp_path / "m.npz"), fitted(checkpoint=tmp_path / "c")):
        assert (again.bic_, again.total_weight_) == (model.bic_, 600)
        assert str(again.summary()) == str(model.summary())


def test_an_older_file_has_none() -> None:
    old = daskgmm.load(Path(__file__).parents[1] / "data" / "format1" / "batch_full.npz")
    assert np.isnan(old.bic_)
    assert "  rows  " in str(old.summary())
    assert "bic" not in old.summary().facts


def test_of_a_stream() -> None:
    model = MiniBatchGaussianMixture(K, random_state=0).partial_fit(FRAME)
    found = model.summary()
    assert found.facts["rows"] == 600
    np.testing.assert_allclose(found.rows, 600 * found.weight)  # not the effective ones, as the start counts twice
    model.fit(FRAME, sample_weight=np.full(600, 3.0))
    np.testing.assert_allclose(model.summary().rows.sum(), 600)
    assert model.effective_sample_size_ > 1000
    assert "bic" not in found.facts
    with pytest.raises(NotFittedError, match="20 of the first"):
        MiniBatchGaussianMixture(K).partial_fit(X[:20]).summary()
    with pytest.raises(NotFittedError):
        GaussianMixture().summary()


def lines_of(model: Any) -> list[str]:
    told: list[str] = str(model.summary()).splitlines()
    assert all(len(line) < 80 for line in told)
    return told


def test_the_table_is_printed() -> None:
    model = fitted()
    head, *rows = lines_of(model)[-K - 1 :]
    assert head.split() == ["#", "weight", "rows", "overlap", "with", "salt", "warmth"]
    for row, i in zip(rows, np.argsort(-model.weights_), strict=True):
        number, weight, n, _, other, *cells = row.split()
        assert (int(number), weight, int(n)) == (i, f"{model.weights_[i]:.1%}", round(600 * model.weights_[i]))
        assert int(other) != i
        assert float(cells[0]) == pytest.approx(model.means_[i, 0], abs=0.06)
        assert float(cells[2]) == pytest.approx(np.sqrt(model.covariances_[i, 0, 0]), abs=0.06)


def many(k: int, d: int, names: Any = None) -> GaussianMixture:
    random = np.random.default_rng(0)
    weights = random.dirichlet(np.ones(k))
    parts = weights, 100 * random.normal(size=(k, d)), random.uniform(0.01, 9, size=(k, d))
    return GaussianMixture.from_parameters(*parts, "diag", names)


@pytest.mark.parametrize(("k", "d"), [(1, 1), (3, 8), (20, 9), (21, 64), (2, 3)])
def test_large_ones_are_cut_and_say_so(k: int, d: int) -> None:
    model = many(k, d)
    told = lines_of(model)
    text = "\n".join(told)
    assert ("Not shown" in text) == (k > 20 or d > 8)
    assert (f"{k - 20} lighter components" in text) == (k > 20)
    assert (f"{d - 8} more features" in text) == (d > 8)
    titles = [word for line in told if line.lstrip().startswith("#") for word in line.split()]
    assert [word for word in titles if word.isdigit()] == [str(j) for j in range(min(d, 8))]


def test_long_names_take_a_line_of_their_own() -> None:
    names = [f"feature {'long ' * 8}{j}" for j in range(3)]
    text = "\n".join(lines_of(many(2, 3, names)))
    assert all(name in text for name in names)


def test_pandas_has_all_of_it() -> None:
    model = many(30, 12)
    table = model.summary().to_pandas()
    assert table.shape == (30, 4 + 2 * 12)
    assert table.index.name == "component"
    np.testing.assert_array_equal(table.loc[7, ["0_mean", "11_mean"]], model.means_[7, [0, 11]])
    np.testing.assert_allclose(table["3_std"] ** 2, model.covariances_[table.index, 3])
    assert table["nearest"].tolist() == model.summary().nearest.tolist()


@pytest.mark.parametrize(
    ("mean", "deviation", "told"),
    [
        (4.28966, 0.41187, "4.29 ± 0.41"),
        (-0.00012, 0.35, "0.00 ± 0.35"),
        (79.968, 6.0, "80.0 ± 6.0"),
        (50_123.0, 1234.0, "50123 ± 1234"),
        (1.5e-9, 2.2e-10, "1.50e-09 ± 2.2e-10"),
        (3e12, 1.1, "3.0000000000000e+12 ± 1.1e+00"),
        (1e12, 4e11, "1.00e+12 ± 4.0e+11"),
        (0.0, 1e-200, "0.0e+00 ± 1.0e-200"),
    ],
)
def test_numbers_have_the_digits_that_the_deviation_leaves(mean: float, deviation: float, told: str) -> None:
    assert spread(mean, deviation) == told


class Cells(HTMLParser):
    """What stands in the cells of tables; refuses tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("br", "input", "link", "meta", "path", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] in (["td"], ["th"]):
            self.cells.append(data)


def test_a_notebook_shows_the_same_table() -> None:
    model = fitted()
    found = Cells(model.summary()._repr_html_())
    assert found.cells[:5] == ["#", "weight", "rows", "overlap", "with"]
    assert len(found.cells) == (K + 1) * (5 + D)
    assert model.summary()._repr_html_() in model._repr_html_()
    with sklearn.config_context(display="text"):
        assert not hasattr(model, "_repr_html_")


def test_the_background_is_told_beside_the_table() -> None:
    model = fitted(background=True)
    found = model.summary()
    assert found.background == model.background_weight_ > 0
    told = f"background {found.background:.1%}"
    assert lines_of(model)[-2:] == ["", told]
    assert found.table.splitlines()[-1] == told
    assert told in found._repr_html_()
    assert "background" not in fitted().summary().table


def test_names_are_text_there() -> None:
    name = "<script>alert(1)</script>\x1b[2J"
    told = many(2, 1, [name])._repr_html_()
    assert "<script>" not in told
    assert "\x1b" not in told


def test_before_a_fit_a_notebook_shows_the_parameters() -> None:
    assert "n_components" in GaussianMixture(3)._repr_html_()


def test_a_pipeline_shows_it() -> None:
    pipe = make_pipeline(StandardScaler(), GaussianMixture(K, random_state=0)).fit(X)
    told = pipe._repr_html_()
    assert pipe[-1].summary()._repr_html_() in told
    assert "covariances_" not in told


def test_what_went_with_the_rows_is_told(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    noise, known, weight = np.full(x.shape, 0.1), np.full(60, -1), np.ones(60)
    model = GaussianMixture(1).fit(x, sample_weight=weight, noise=noise, known=known)
    model.save(tmp_path / "m.npz")
    assert "fitted with known, noise, sample_weight;" in str(daskgmm.load(tmp_path / "m.npz").summary()).replace(
        "\n", " "
    )
    stream = MiniBatchGaussianMixture(1).partial_fit(x, noise=noise).partial_fit(x, known=known).partial_fit(x)
    assert stream.summary().facts["beside"] == "known, noise"
    started = GaussianMixture(1, labels_init=np.zeros(60, int)).fit(x)
    assert "beside" not in started.summary().facts  # starts leave nothing behind
