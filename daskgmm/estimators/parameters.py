"""Parameters of estimators, each stated once: type, default, what is allowed, and what it means."""

import inspect
import os
import textwrap
from dataclasses import KW_ONLY, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, TypeVar

from sklearn.utils._param_validation import Interval, StrOptions

from daskgmm._typing import CovarianceType, InitParams
from daskgmm.fit.starts import STARTS
from daskgmm.model.prior import NormalInverseWishart
from daskgmm.model.structure import NAMES

C = TypeVar("C")

INIT_PARAMS = {"auto", "subsample", *STARTS}
SMALL = ("weights_init", "means_init", "precisions_init")  # starts that are small arrays
ARRAYS = (*SMALL, "mean_prior", "covariance_prior")  # whatever is a small array
Known: TypeAlias = Literal["weak"] | NormalInverseWishart | None
ROWWISE = ("labels_init", "responsibilities_init")  # starts with a value for each row


def at_least(least: int) -> Interval:
    """Integers from ``least`` on."""
    return Interval(Integral, least, None, closed="left")


def real(least: float, most: float | None = None, closed: str = "left") -> Interval:
    """Numbers in an interval."""
    return Interval(Real, least, most, closed=closed)


def parameter(default: Any, allowed: Any, text: str) -> Any:
    """A parameter: ``allowed`` in scikit-learn's terms, ``text`` for the class's documentation."""
    return field(default=default, metadata={"allowed": allowed, "text": inspect.cleandoc(text)})


def like(kind: Any, name: str, *default: Any) -> Any:
    """A parameter that means the same to another estimator, and may have another default."""
    (same,) = (f for f in fields(kind) if f.name == name)
    return parameter(default[0] if default else same.default, same.metadata["allowed"], same.metadata["text"])


ESTIMATORS: dict[str, type[Any]] = {}  # by name


def estimator(cls: type[C]) -> type[C]:
    """Make what scikit-learn, readers and files look for from the parameters and attributes of an estimator.

    ``{parameters}`` and ``{attributes}`` in the docstring give way to numpydoc sections: attributes are the public
    members whose names end in an underscore, with the first paragraph of their own docstring.
    """
    entries = {f.name: f for f in fields(cls) if f.metadata}  # type: ignore[arg-type]
    cls._parameter_constraints = {name: f.metadata["allowed"] for name, f in entries.items()}  # type: ignore[attr-defined]
    found = {name: getattr(cls, name) for name in dir(cls) if name.endswith("_") and not name.startswith("_")}
    sections = {
        "parameters": [(f"{name} : {_kind(f)}", f.metadata["text"]) for name, f in entries.items()],
        "attributes": [(name, inspect.cleandoc(member.__doc__ or "")) for name, member in found.items()],
    }
    for title, listed in sections.items():
        section = [title.capitalize(), "-" * len(title)]
        for head, text in listed:
            section += [head, textwrap.indent(text.partition("\n\n")[0], "    ")]
        whole = textwrap.indent("\n".join(section), "    ").lstrip()
        cls.__doc__ = (cls.__doc__ or "").replace(f"{{{title}}}", whole)
    if hasattr(cls, "load"):  # else files hold what it finds under another name
        ESTIMATORS[cls.__name__] = cls
    return cls


WORDS = {
    "boolean": "bool",
    "random_state": "int, RandomState or None",
    "verbose": "bool or int",
    Integral: "int",
    Real: "float",
    None: "None",
}


def _kind(f: Any) -> str:
    """What a parameter may be, and is by default."""
    words, allowed = [], f.metadata["allowed"]
    choices: list[Any] = ["array-like", None] if allowed == "no_validation" else allowed
    for kind in choices:
        if isinstance(kind, StrOptions):
            words.append("{" + ", ".join(f'"{name}"' for name in sorted(kind.options)) + "}")
        else:
            key = kind.type if isinstance(kind, Interval) else kind
            words.append(WORDS.get(key) or getattr(key, "__name__", key))
    return f"{' or '.join(dict.fromkeys(words))}, default={f.default!r}"


@dataclass(eq=False, repr=False)
class Single:
    """What a fit of one mixture is told of it; the last base of a class, so that these come first."""

    n_components: int = parameter(1, [at_least(1)], "Number of components, k.")
    _: KW_ONLY
    covariance_type: CovarianceType = parameter(
        "full",
        [StrOptions(set(NAMES))],
        """What the covariances of the components have in common. "full" (nothing), "tied" (all), "diag" (along the
        features) and "spherical" are scikit-learn's; of "tied_diag" and "tied_spherical" all share one. mclust's
        codes say of volume, shape and orientation whether they are equal (E), vary (V), or are not there (I).
        "factors" are loadings of ``n_factors`` factors, and noise of each feature.""",
    )
    weights_init: Any = parameter(None, ["array-like", None], "Proportions (k,) to start from.")
    means_init: Any = parameter(
        None,
        ["array-like", None],
        "Means (k, d) to start from. With means but not the rest, rows go to the nearest mean.",
    )
    precisions_init: Any = parameter(
        None, ["array-like", None], "Inverse covariances to start from, in their shape."
    )
    warm_start: bool = parameter(
        False, ["boolean"], "Whether `fit` goes on from the last fit's parameters, without a survey."
    )


@dataclass(eq=False, repr=False, kw_only=True)
class Beforehand:
    """What those are told that find the maximum of a likelihood, or of a posterior; see `like`."""

    n_factors: int | None = parameter(
        None,
        [at_least(1), None],
        'Factors of each component, for ``covariance_type="factors"``; fewer than features.',
    )
    prior: Known = parameter(
        None,
        [StrOptions({"weak"}), NormalInverseWishart, None],
        """What is known of components beforehand: the fit finds the mode of the posterior. "weak" is the prior of
        Fraley & Raftery (2007), which keeps components from collapsing, also with ``reg_covar=0``. A
        ``NormalInverseWishart`` says more, and adapts a given mixture. The monitored log-likelihood has the
        log-density of the prior, too, up to a constant.""",
    )
    frozen: Any = parameter(
        None,
        ["array-like", dict, str, None],
        """What is not learnt but stays as ``weights_init``, ``means_init`` and ``precisions_init`` give it: names
        out of "weights", "means" and "covariances", or a mapping of these to numbers of components. The fit
        maximises over the rest: other weights share what is left, and a covariance is that about a mean that
        stays. There are no moves and no acceleration, and no component is placed anew.""",
    )
    background: bool = parameter(
        False,
        ["boolean"],
        """Whether there is a uniform density beside the components, in the box of the least and largest values of
        each feature, of which ``background_weight_`` is the share; of a stream, the box of the rows that seed it.
        The start leaves it 5 %, and "auto" is "subsample", as noise misleads k-means. There is no acceleration,
        and no component is placed anew.""",
    )


@dataclass(eq=False, repr=False, kw_only=True)
class Parameters:
    """What all estimators share: of starts, of reading and of watching."""

    reg_covar: float = parameter(
        1e-6,
        [real(0)],
        """Added to the diagonal of every covariance, before components are made to agree. With 0 an EM step never
        lowers the likelihood; with more it may, slightly: the update is then not the exact maximiser. A feature
        that hardly varies needs some.""",
    )
    init_params: InitParams = parameter("auto", [StrOptions(INIT_PARAMS)], "How to start.")
    random_state: Any = parameter(
        None,
        ["random_state"],
        "Seeds the sample, the starts and the order of mini-batches; an int gives the same fit each time.",
    )
    block_size: int | str = parameter(
        "64 MiB",
        [at_least(1), str],
        """Bytes per block, at most (a larger stored chunk stays whole). Dask arrays keep their own row chunks.""",
    )
    nan_policy: Literal["raise", "omit", "missing"] = parameter(
        "raise",
        [StrOptions({"raise", "omit", "missing"})],
        """What NaN, a masked or a null value means: an error with "raise"; with "omit", a row left out; with
        "missing", a row that counts with the values it has. "omit" heeds ``sample_weight``, too, and leaves out of
        the start those rows that ``labels_init`` or ``responsibilities_init`` miss. "missing" is exact EM where
        values of X are missing at random (Ghahramani & Jordan 1994). A row without any counts as nothing.""",
    )
    missing_chunks: Literal["raise", "fill"] = parameter(
        "raise",
        [StrOptions({"raise", "fill"})],
        """What to do where a Zarr store lacks a chunk. Zarr itself reads it as the fill value, silently.""",
    )
    variables: Any = parameter(
        None,
        ["array-like", str, None],
        """Names of the arrays of a group, or columns of a frame or Parquet file, that are the features, where X is
        such: a Zarr group, an HDF5 or netCDF file. Arrays of one shape; all their axes become rows. Where X is one
        array without names, they name its columns. The parameter is not saved, but ``feature_names_in_`` is. Where
        it is None, a fitted model takes the arrays of those names in a group that has them all.""",
    )
    storage_options: Any = parameter(
        None,
        [dict, None],
        """Options for the fsspec file system behind every URL, of X and of what goes with its rows. Not saved, but
        shown where the estimator is printed: secrets belong into fsspec's configuration.""",
    )
    decode_cf: bool = parameter(
        True,
        ["boolean"],
        """Whether to decode a store whose attributes say what its numbers stand for (``scale_factor``,
        ``add_offset``, ``_FillValue``, ``missing_value``, ``_Unsigned``), as xarray does, which is needed for it;
        what is missing becomes NaN. In Zarr's format 2, the fill value of an array whose dimensions xarray named
        stands for ``_FillValue``. Weights and starts are decoded alike.""",
    )
    feature_dim: str | None = parameter(
        None,
        [str, None],
        """The dimension of an ``xarray.DataArray`` that has the features: all others are stacked into rows, and
        answers have these others. None takes the second of two. The features of a Dataset are its variables.""",
    )
    checkpoint: Any = parameter(
        None,
        [str, os.PathLike, None],
        """Path or fsspec URL of a file that holds where the fit stands after every pass. `fit` goes on from a file
        of the same data and settings, with the result of a fit that was never stopped; from a finished one it
        returns without reading the rows. With a larger ``max_iter`` or a smaller ``tol`` it goes on further, as if
        that had been asked for from the start, except that a start stays that "subsample" found with the old
        ``tol``. It is refused where shape, block plan or other settings differ, or, in an unfinished fit, the
        values of the first, middle or last block; and where an online fit of one pass is to make more, for which
        it has held no rows out. Where ``random_state`` is no integer, the file's own goes on. While another fit
        writes it, it is refused, too. On a URL a fit that was killed counts as writing for another 30 s
        (``daskgmm.checkpoint-lease`` in Dask's configuration): `fit` waits for so
        long, and goes on.""",
    )
    verbose: int = parameter(0, ["verbose"], "Whether to print what the fit does.")
    verbose_interval: int = parameter(10, [at_least(1)], "Iterations for each line that is printed.")
