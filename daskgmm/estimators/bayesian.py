"""BayesianGaussianMixture: variational inference with scikit-learn's interface."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from sklearn.mixture import BayesianGaussianMixture as Theirs
from sklearn.utils._param_validation import StrOptions

from daskgmm._typing import Array, CovarianceType, InitParams
from daskgmm.compute.rows import Rows
from daskgmm.estimators.checks import read_belief, read_start
from daskgmm.estimators.fitted import Absent, Attribute, Fitted, shown
from daskgmm.estimators.fitting import Fitting
from daskgmm.estimators.gaussian_mixture import FITTED, GaussianMixture, handed_over
from daskgmm.estimators.parameters import INIT_PARAMS, estimator, like, parameter, real
from daskgmm.fit.recipe import Recipe
from daskgmm.fit.run import AUTO, Run, best
from daskgmm.fit.state import State
from daskgmm.fit.variational import BayesianRecipe, Inference, variational
from daskgmm.model.mixture import Mixture
from daskgmm.model.posterior import Posterior, Variational
from daskgmm.model.structure import PLAIN

NO_LIKELIHOOD = "the lower bound of the evidence, lower_bound_, is what compares fits to the same rows."

BELIEVED = (
    "weight_concentration_prior_ weight_concentration_ mean_precision_prior_ mean_precision_ mean_prior_ "
    "degrees_of_freedom_prior_ degrees_of_freedom_ covariance_prior_"
)


def _posterior(fitted: Fitted) -> Posterior:
    return cast(Posterior, fitted.mixture)


def _prior(fitted: Fitted) -> Variational:
    return cast(Variational, fitted.belief)


def _of_one(fitted: Fitted) -> Any:
    """The scale of the prior covariance in scikit-learn's shape: a matrix, variances, or a number."""
    values = cast(Array, _prior(fitted).covariance)[0]
    return float(values[0]) if fitted.mixture.covariance.structure.isotropic else values


def _dof(fitted: Fitted) -> Any:
    nu = _posterior(fitted).degrees_of_freedom
    return nu[0] if fitted.mixture.covariance.structure.shared else nu


def _sizes(fitted: Fitted) -> Any:
    sizes = _posterior(fitted).concentration
    return tuple(sizes) if sizes.ndim == 2 else sizes


@estimator
@dataclass(eq=False, repr=False, kw_only=True)
class BayesianGaussianMixture(Fitting):
    """Gaussian mixture by variational inference: the posterior of its parameters, in passes over row blocks.

    Give more components than there are: those that the rows do not need lose them. Every parameter and attribute
    that scikit-learn's ``BayesianGaussianMixture`` has means the same here, with the additions below. Input,
    threads, clients and precision are those of `GaussianMixture`.

    {parameters}

    {attributes}

    Notes
    -----
    Each pass is the E-step of `GaussianMixture` with other weights and the same factors, so it costs the same.
    `predict_proba` and `score_samples` follow from expected logarithms of the parameters, as scikit-learn's do:
    that density lies below the one of the expected parameters, and integrates to less than 1. ``mixture_``,
    `sample` and whatever else needs a distribution take the expected parameters; `marginal` and `conditional` give
    a `GaussianMixture` of them.

    ``lower_bound_`` is that of all rows together, in nats, and ``tol`` compares it, as in scikit-learn, where
    `GaussianMixture` has means. With many rows 1e-3 is little, and ``tol="auto"`` serves better. Like
    scikit-learn's, the bound leaves constants out: it compares fits of one prior. With ``reg_covar=0`` it never
    falls.

    With ``nan_policy="missing"``, what a row misses has a posterior of its own, and so have the true values of a
    row with ``noise``; the bound counts them. Where rows have noise, "auto" starts by "kmeans". Rows of which the
    component is ``known`` belong to that under every posterior, and where there are some, none is merged.

    Attias (2000), A variational Bayesian framework for graphical models; Bishop (2006), Pattern recognition and
    machine learning, section 10.2; Blei & Jordan (2006), Variational inference for Dirichlet process mixtures.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import BayesianGaussianMixture
    >>> random = np.random.default_rng(0)
    >>> x = random.normal(size=(2000, 2)) + 8 * random.integers(3, size=(2000, 1))
    >>> model = BayesianGaussianMixture(n_components=6, max_iter=500, random_state=0).fit(x)
    >>> int((model.weights_ > 0.01).sum())
    3
    """

    covariance_type: CovarianceType = parameter(
        "full",
        [StrOptions({structure.name for structure in PLAIN})],
        "What the covariances of the components have in common. As in scikit-learn: nothing, all, or axes.",
    )
    tol: float | str = parameter(
        1e-3,
        [real(0), StrOptions({AUTO})],
        """A run has converged when the lower bound of all rows together changes by less, in nats. "auto" goes on
        until what remains to be gained is less than a tenth of ½·log(n).""",
    )
    max_iter: int = like(GaussianMixture, "max_iter")
    n_init: int = parameter(
        1,
        GaussianMixture._parameter_constraints["n_init"],
        """Starts, of which the one of the highest lower bound wins. They advance together: the rows are read once
        for all. "subsample" follows so many on its sample, and the best of them on all rows.""",
    )
    init_params: InitParams = parameter(
        "auto",
        [StrOptions(INIT_PARAMS)],
        """How to start, always from a row sample that the first pass draws, as that of `GaussianMixture`.
        "kmeans" and "random" are scikit-learn's responsibilities; "k-means++" and "random_from_data" assign each
        row to the nearest of the chosen ones. "subsample" goes on from k-means with inference on the sample, where
        a row weighs as many as it stands for. "auto" is "kmeans" for no more rows than the sample has, else
        "subsample".""",
    )
    labels_init: Any = like(GaussianMixture, "labels_init")
    responsibilities_init: Any = like(GaussianMixture, "responsibilities_init")
    weight_concentration_prior_type: Literal["dirichlet_process", "dirichlet_distribution"] = parameter(
        "dirichlet_process",
        [StrOptions({"dirichlet_process", "dirichlet_distribution"})],
        """Whether proportions come from a Dirichlet process, which breaks a stick and so puts components in order,
        or from a symmetric Dirichlet distribution.""",
    )
    weight_concentration_prior: float | None = parameter(
        None,
        [None, real(0.0, closed="neither")],
        "Of these, γ; the lower, the fewer components keep rows. None takes 1 / k.",
    )
    mean_precision_prior: float | None = parameter(
        None, [None, real(0.0, closed="neither")], "How many rows the prior mean counts as, β; None takes 1."
    )
    mean_prior: Any = parameter(None, [None, "array-like"], "The prior mean (d,); None takes that of all rows.")
    degrees_of_freedom_prior: float | None = parameter(
        None,
        [None, real(0.0, closed="neither")],
        "How many rows the prior covariance counts as, ν, above d − 1; None takes d.",
    )
    covariance_prior: Any = parameter(
        None,
        [None, "array-like", real(0.0, closed="neither")],
        """ν times the prior covariance: (d, d) for "full" and "tied", (d,) for "diag", a number for "spherical".
        None takes the covariance of all rows.""",
    )

    mixture_ = Attribute(lambda f: _posterior(f).plain, "The mixture of the expected parameters, as one value.")
    covariances_ = Attribute(
        lambda f: shown(f, f.mixture.covariance.values),
        "Inverses of the expected precisions: full (k, d, d), tied (d, d), diag (k, d), spherical (k,).",
    )
    converged_ = Attribute(lambda f: f.converged, "Whether the lower bound came to rest.")
    lower_bound_ = Attribute(
        lambda f: f.lower_bound, "Lower bound of the log-evidence of all rows together, less constants, in nats."
    )
    lower_bounds_ = Attribute(lambda f: list(f.lower_bounds), "That of each iteration of the best run.")
    total_weight_ = Attribute(
        lambda f: f.score.total_weight, "Rows of the fit, or the sum of their weights; NaN before an iteration."
    )
    weight_concentration_prior_ = Attribute(lambda f: _prior(f).concentration, "γ.")
    weight_concentration_ = Attribute(
        _sizes, "Of the posterior of proportions: (k,), or for a Dirichlet process two (k,) of beta distributions."
    )
    mean_precision_prior_ = Attribute(lambda f: _prior(f).mean_precision, "β.")
    mean_precision_ = Attribute(lambda f: _posterior(f).mean_precision, "Rows that each mean counts as, (k,).")
    mean_prior_ = Attribute[Array](lambda f: cast(Array, _prior(f).mean), "The prior mean, (d,).")
    degrees_of_freedom_prior_ = Attribute(lambda f: _prior(f).degrees_of_freedom, "ν.")
    degrees_of_freedom_ = Attribute(_dof, "Rows that each covariance counts as, (k,); one number for tied.")
    covariance_prior_ = Attribute(_of_one, "ν times the prior covariance, in the shape of that of one component.")

    aic = cast(Any, Absent(NO_LIKELIHOOD))
    bic = cast(Any, Absent(NO_LIKELIHOOD))
    icl = cast(Any, Absent(NO_LIKELIHOOD))
    from_parameters = cast(Any, Absent("GaussianMixture.from_parameters makes a mixture of given parameters."))

    def to_sklearn(self) -> Theirs:
        """A fitted scikit-learn ``BayesianGaussianMixture`` with the same settings, prior and posterior."""
        theirs: Theirs = handed_over(self, Theirs(), f"{FITTED} {BELIEVED}")
        return theirs

    _algorithm = staticmethod(variational)
    _unconverged = GaussianMixture._unconverged

    def _recipe(self, d: int, kind: type[Recipe] = BayesianRecipe, **more: Any) -> Any:
        return super()._recipe(d, kind, run=Inference, **more)

    def _beforehand(self, d: int) -> dict[str, Any]:
        return {"start": read_start(self, d), "belief": read_belief(self, d)}

    def _stored(self, X: Any, last: Fitted | None, **columns: Any) -> Rows:
        return GaussianMixture._stored(cast(Any, self), X, last, **columns)

    def _begun(self, rows: Rows, recipe: BayesianRecipe, last: Fitted | None) -> tuple[Run, ...]:
        if last is None:
            return ()
        self._check_shape(rows, "warm_start")
        before = _prior(last)
        belief = recipe.belief.given(np.asarray(before.mean), np.asarray(before.covariance))
        return (Inference(last.mixture, belief, self.tol, self.max_iter, previous=last.lower_bound),)

    def _found(self, state: State, rows: Rows) -> Fitted:
        run = best(state.runs)
        assert isinstance(run, Inference)
        return Fitted.of(run, state.n_passes, rows, belief=run.update)

    def _of(self, mixture: Mixture, features: Array, kind: Any = GaussianMixture) -> Any:
        return super()._of(mixture, features, kind)
