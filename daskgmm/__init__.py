"""Gaussian mixture models for data that does not fit in memory."""

from importlib.metadata import PackageNotFoundError, version

from daskgmm.errors import CollapseError, DataError
from daskgmm.estimators.bayesian import BayesianGaussianMixture
from daskgmm.estimators.expectation import Expectation
from daskgmm.estimators.gaussian_mixture import GaussianMixture
from daskgmm.estimators.minibatch import MiniBatchGaussianMixture
from daskgmm.estimators.outlook import check
from daskgmm.estimators.persistence import load
from daskgmm.estimators.search import GaussianMixtureSearch
from daskgmm.fit.events import watching
from daskgmm.model.prior import NormalInverseWishart

# isort: split
# Last, as it is made of what stands above: chains of imports stay short, and with them Python's stack.
from daskgmm import display

try:
    __version__ = version("daskgmm")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "BayesianGaussianMixture",
    "CollapseError",
    "DataError",
    "Expectation",
    "GaussianMixture",
    "GaussianMixtureSearch",
    "MiniBatchGaussianMixture",
    "NormalInverseWishart",
    "check",
    "display",
    "load",
    "watching",
]
