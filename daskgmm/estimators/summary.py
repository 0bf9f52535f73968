"""A fitted mixture at a glance: a table of its components, heaviest first."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from math import floor, isfinite, log10, nan
from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.errors import printable
from daskgmm.estimators.fitted import Fitted
from daskgmm.model.overlap import distances

WIDTH = 79  # columns of a line
COMPONENTS, FEATURES = 20, 8  # that a table shows; `Summary.to_pandas` has all
LONGEST = 60  # characters of a name
TITLES = {
    "estimator": "model",
    "n_components": "components",
    "n_features": "features",
    "covariance_type": "covariances",
    "effective_rows": "effective rows",
    "n_iter": "iterations",
    "n_passes": "passes",
    "log_likelihood": "log-likelihood per row",
    "last_log_likelihood": "log-likelihood of the last rows",
    "lower_bound": "lower bound",
    "beside": "fitted with",
    **{name: name for name in ("rows", "converged", "bic", "aic")},
}


@dataclass(frozen=True, eq=False)
class Summary:
    """A fitted mixture at a glance; ``print`` shows a table of 80 columns, a notebook one in HTML.

    Arrays have one entry for each component, the heaviest first.

    Attributes
    ----------
    facts : dict
        What the fit was and found, by name, as far as it is known: ``rows``, ``converged``, ``bic``, for instance.
    features : tuple of str
        Names of the features, or their numbers.
    component : (k,) int
        The number of each component: its place in ``means_``, and what ``predict`` answers.
    weight : (k,)
        Mixing proportions.
    rows : (k,)
        The same in rows of the fit, or in units of their weights, NaN where that is not known; of an online fit in
        the rows that it has learnt, whatever they weigh, once for each pass.
    mean, deviation : (k, d)
        Means and standard deviations.
    nearest : (k,) int
        The number of the component that each overlaps with most; −1 for a single one.
    overlap : (k,)
        How much, as the Bhattacharyya coefficient ∫ √(p·q) dx of the two densities (Bhattacharyya 1943): 1 where
        they are equal, 0 where they are apart. It ignores weights. Of rows that come from either of two components
        of equal weight, at least ½·(1 − √(1 − overlap²)) are taken for the other's, and at most ½·overlap.
    background : float
        Proportion of the background, which the weights leave of 1; 0 where there is none.
    """

    facts: Mapping[str, Any]
    features: tuple[str, ...]
    component: Array
    weight: Array
    rows: Array
    mean: Array
    deviation: Array
    nearest: Array
    overlap: Array
    background: float = 0.0

    @classmethod
    def of(cls, fitted: Fitted, estimator: str) -> "Summary":
        """Of what a fit of this class left."""
        mixture, facts = fitted.mixture, facts_of(fitted, estimator)
        (k, d), names = mixture.means.shape, fitted.feature_names
        order = np.argsort(-mixture.weights, kind="stable")
        apart = distances(mixture)
        np.fill_diagonal(apart, np.inf)
        deviation = np.broadcast_to(mixture.covariance.deviations, (k, d))
        return cls(
            facts,
            tuple(map(str, range(d) if names is None else names)),
            order,
            mixture.weights[order],
            mixture.weights[order] * facts.get("rows", nan),
            mixture.means[order],
            deviation[order],
            (apart.argmin(axis=1) if k > 1 else np.array([-1]))[order],
            np.exp(-apart.min(axis=1))[order],
            mixture.background_weight,
        )

    def to_pandas(self) -> Any:
        """All of the table as a pandas ``DataFrame``: a row for each component, ``NAME_mean`` and ``NAME_std``.

        Raises
        ------
        ImportError
            Without pandas, which the extra ``dataframe`` brings.
        """
        from pandas import DataFrame

        columns = {name: getattr(self, name) for name in ("weight", "rows", "overlap", "nearest")}
        for j, name in enumerate(self.features):
            columns |= {f"{name}_mean": self.mean[:, j], f"{name}_std": self.deviation[:, j]}
        table: Any = DataFrame(columns)
        return table.set_axis(self.component, axis=0).rename_axis("component")

    def components(self) -> list[dict[str, Any]]:
        """The same as plain values, for JSON: a dict for each component."""
        return [
            {
                "component": int(self.component[i]),
                "weight": float(self.weight[i]),
                "rows": float(self.rows[i]),
                "mean": self.mean[i].tolist(),
                "std": self.deviation[i].tolist(),
                "nearest": int(self.nearest[i]),
                "overlap": float(self.overlap[i]),
            }
            for i in range(len(self.component))
        ]

    def __str__(self) -> str:
        return "\n".join([*_facts(self.facts), "", self.table])

    @property
    def table(self) -> str:
        """The table alone, without the facts."""
        lines = [line for block in _blocks(self._head(), self._cells()) for line in [*block, ""]]
        return "\n".join([*lines, *textwrap.wrap(self._left_out(), WIDTH), *self._outside()]).rstrip()

    def _repr_html_(self) -> str:
        columns = [*self._head(), *self._cells()]
        head = "".join(_cell("th", column[0]) for column in columns)
        lines = []
        for i, (number, *rest) in enumerate(zip(*(column[1:] for column in columns), strict=True)):
            bar = f"background:linear-gradient(90deg,rgba(86,180,233,.35) {self.weight[i]:.1%},transparent 0)"
            cells = [_cell("td", cell, bar if place == 0 else "") for place, cell in enumerate(rest)]
            lines.append(f"<tr>{_cell('td', number)}{''.join(cells)}</tr>")
        title, *told = (f"{TITLES[name]} {_told(value)}" for name, value in self.facts.items())
        return (
            f'<div style="overflow-x:auto"><p><b>{escape(title)}</b><br>{escape("; ".join(told))}</p>'
            f'<table style="border-collapse:collapse;font-size:inherit"><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table><p>{escape(self._left_out())}</p>"
            f"{''.join(f'<p>{line}</p>' for line in self._outside())}</div>"
        )

    def _head(self) -> list[list[str]]:
        """The columns that do not depend on features, each with its title."""
        shown = range(min(COMPONENTS, len(self.component)))
        rows = [f"{self.rows[i]:,.0f}" if isfinite(self.rows[i]) else "-" for i in shown]
        alone = len(self.component) == 1
        return [
            ["#", *(str(self.component[i]) for i in shown)],
            ["weight", *(f"{self.weight[i]:.1%}" for i in shown)],
            ["rows", *rows],
            ["overlap", *("-" if alone else _share(self.overlap[i]) for i in shown)],
            ["with", *("-" if alone else str(self.nearest[i]) for i in shown)],
        ]

    def _cells(self) -> list[list[str]]:
        """A column for each feature that is shown, with its title."""
        shown = range(min(COMPONENTS, len(self.component)))
        return [
            [_short(printable(name)), *(spread(self.mean[i, j], self.deviation[i, j]) for i in shown)]
            for j, name in enumerate(self.features[:FEATURES])
        ]

    def _left_out(self) -> str:
        """What the table does not show."""
        k, d = self.mean.shape
        left = [f"{k - COMPONENTS:,} lighter components, {self.weight[COMPONENTS:].sum():.1%} of the weight"]
        left = left * (k > COMPONENTS) + [f"{d - FEATURES:,} more features"] * (d > FEATURES)
        return f"Not shown: {', and '.join(left)}. summary().to_pandas() has them." if left else ""

    def _outside(self) -> list[str]:
        """The share of the background, in a line, if there is one."""
        return [f"background {self.background:.1%}"] if self.background else []


def facts(model: Any) -> dict[str, Any]:
    """What its summary says of a fitted estimator, without the table, which takes time for many components."""
    return facts_of(model._fitted, type(model).__name__)


def facts_of(fitted: Fitted, estimator: str) -> dict[str, Any]:
    """What a fit was and found, by name, as far as it is known."""
    mixture, run, found = fitted.mixture, fitted.online, fitted.score
    told = {
        "estimator": estimator,
        "n_components": mixture.n_components,
        "n_features": mixture.n_features,
        "covariance_type": mixture.covariance.structure.name,
        "rows": found.total_weight,
        **({} if run is None else {"rows": run.n_rows, "effective_rows": run.effective_rows}),
        "n_iter": fitted.n_iter or None,
        "n_passes": fitted.n_passes or None,
        "converged": fitted.rested,
        "beside": ", ".join(fitted.beside) or None,
    }
    if fitted.belief is None:
        # What has learnt on knows that of the rows that came last alone.
        on = run is not None and fitted.rated is None and fitted.lower_bounds[-1:] != (fitted.lower_bound,)
        told["last_log_likelihood" if on else "log_likelihood"] = fitted.log_likelihood
        told |= {"bic": found.bic, "aic": found.aic}
    else:  # of a posterior, rows have no likelihood
        told |= {"lower_bound": fitted.lower_bound}
    return {
        name: value
        for name, value in told.items()
        if value is not None and not (isinstance(value, float) and not isfinite(value))
    }


def spread(mean: float, deviation: float) -> str:
    """``mean ± deviation``, the deviation to two digits and the mean as far as that goes."""
    if not isfinite(mean + deviation):
        return f"{mean:.3g} ± {deviation:.2g}"
    digits = 1 - floor(log10(deviation))
    largest = max(abs(mean), deviation)
    if digits > 6 or largest >= 1e7:  # in powers of ten
        return f"{mean:.{max(1, min(15, floor(log10(largest)) + digits))}e} ± {deviation:.1e}"
    return f"{mean:z.{max(0, digits)}f} ± {deviation:.{max(0, digits)}f}"


def _cell(tag: str, text: str, style: str = "") -> str:
    """A cell of a table in HTML."""
    return f'<{tag} style="text-align:right;padding:.15em .7em;white-space:nowrap;{style}">{escape(text)}</{tag}>'


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _share(overlap: float) -> str:
    """A number in [0, 1]; what is as good as none says so."""
    return f"{overlap:.3f}" if overlap >= 1e-3 else f"{overlap:.0e}" if overlap >= 1e-9 else "0"


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    """The facts in lines, ``name value`` after ``name value``."""
    told = "; ".join(f"{TITLES[name]} {_told(value)}" for name, value in facts.items())
    return iter(textwrap.wrap(printable(told), WIDTH, break_on_hyphens=False, break_long_words=False))


def _told(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.8g}"
    return str(value)


def _blocks(head: list[list[str]], cells: list[list[str]]) -> Iterator[list[str]]:
    """Lines of tables of which each fits the width; those after the first repeat the numbers of components."""
    left = list(cells)
    lead = head
    while left or lead is head:
        columns = [*lead]
        while left and (len(columns) == 1 or _width([*columns, left[0]]) <= WIDTH):
            columns.append(left.pop(0))
        yield aligned(columns)
        lead = head[:1]


def aligned(columns: list[list[str]]) -> list[str]:
    """The lines of a table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _width(columns: list[list[str]]) -> int:
    return sum(max(map(len, column)) + 2 for column in columns) - 2
