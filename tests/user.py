"""What mypy tells a user: a script of theirs, whose mistakes it has to see.

No test runs it. mypy --strict reads it: a mistake that is not seen is a comment too many, and fails.
"""

from typing import Any, assert_type

import dask.array as da
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from daskgmm import GaussianMixture, GaussianMixtureSearch, MiniBatchGaussianMixture

ROWS: NDArray[np.float64] = np.zeros((9, 2))
CHUNKED: da.Array = da.zeros((9, 2))


def right() -> None:
    """As it is meant."""
    model = GaussianMixture(3, covariance_type="diag", nan_policy="omit").fit("rows.zarr")
    assert_type(model, GaussianMixture)
    assert_type(model.set_params(tol=1e-5), GaussianMixture)
    for X in (ROWS, [[1.0, 2.0]], pd.DataFrame(ROWS)):
        model.fit(X, sample_weight=ROWS[:, 0])
    assert_type(model.predict(ROWS), NDArray[Any])
    assert_type(model.score_samples(ROWS), NDArray[Any])
    assert_type(model.predict_proba(CHUNKED), da.Array)
    assert_type(model.is_outlier(CHUNKED, model.threshold("rows.zarr", 0.01)), da.Array)
    assert_type(model.means_, NDArray[Any])
    assert_type(model.converged_, bool)
    assert_type(model.bic_, float)
    assert_type(MiniBatchGaussianMixture(3).fit(iter([ROWS])), MiniBatchGaussianMixture)
    assert_type(GaussianMixtureSearch(range(1, 9)).fit(ROWS).best_estimator_, GaussianMixture)


def wrong() -> None:
    """Slips of the pen."""
    model = GaussianMixture(3, covariance_type="ful")  # type: ignore[arg-type]
    GaussianMixture(3, nan_policy="skip")  # type: ignore[arg-type]
    GaussianMixture(3, "diag")  # type: ignore[call-arg]
    GaussianMixture(n_component=3)  # type: ignore[call-arg]
    model.predit(ROWS)  # type: ignore[attr-defined]
    model.fit(42)  # type: ignore[arg-type]
    model.predict(42)  # type: ignore[call-overload]
    model.score(42)  # type: ignore[arg-type]
    print(model.mean_)  # type: ignore[attr-defined]
    model.means_ = ROWS  # type: ignore[assignment]
    model.partial_fit(ROWS)  # type: ignore[attr-defined]
