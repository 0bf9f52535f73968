"""Warnings name the line of whoever called, however deep they arise."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from daskgmm import GaussianMixture, MiniBatchGaussianMixture
from tests.apart import rows_of

X = rows_of(0, 300)
NAMED = GaussianMixture(3, random_state=0).fit(pd.DataFrame(X, columns=["a", "b"]))


def unconverged(folder: Path) -> Any:
    return GaussianMixture(3, random_state=0, max_iter=1).fit_predict(X)


def within_a_pipeline(folder: Path) -> Any:
    return make_pipeline(StandardScaler(), GaussianMixture(3, random_state=0, max_iter=1)).fit(X)


def without_names(folder: Path) -> Any:
    return NAMED.predict_proba(X)


def copies_of_a_stream(folder: Path) -> Any:
    return MiniBatchGaussianMixture(3, random_state=0, init_size=5).partial_fit(np.zeros((9, 2)))


@pytest.mark.parametrize(
    "call", [unconverged, within_a_pipeline, without_names, copies_of_a_stream], ids=lambda call: call.__name__
)
def test_warnings_point_at_the_caller(call: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        partial(call, tmp_path)()
    assert seen
    first = call.__code__.co_firstlineno
    assert {(warning.filename, warning.lineno) for warning in seen} == {(__file__, first + 1)}
