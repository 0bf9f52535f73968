"""Fit to batches that can be gone through once: `partial_fit` for each of them."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, repeat
from typing import Any, TypeVar

from daskgmm.errors import ClusterLostError, DataError

M = TypeVar("M", bound=Any)
STATE = ("_fitted", "_unseeded")
END = object()
WHAT = {"sample_weight": "weights", "known": "labels", "noise": "variances"}  # goes with the rows of a batch


def fit_batches(model: M, batches: Iterator[Any], **beside: Any) -> M:
    """``model``, once it has learnt all batches, from the beginning unless ``warm_start``; one is held at a time.

    With what goes with their rows, by the names of `partial_fit`.

    Whoever predicts meanwhile sees the last fit. `DataError` leaves that; an interrupt leaves what was learnt.
    """
    if model.max_iter > 1 or model.checkpoint is not None:
        raise DataError(
            "X is an iterator, which can be gone through once: set max_iter to 1 and checkpoint to None. To go on "
            "later, save the model, and give partial_fit what is left."
        )
    learner = copy.copy(model)
    if not model.warm_start:
        _take(learner, {})
    try:
        _learn(learner, batches, {name: _of_batches(name, value) for name, value in beside.items()})
    except (KeyboardInterrupt, ClusterLostError):
        if "_fitted" in vars(learner):
            _take(model, vars(learner))
        raise
    if "_fitted" not in vars(learner):
        raise DataError(
            f"X ended too soon: {learner.n_rows_to_start_} more rows are needed to start a model (init_size)."
            if "_unseeded" in vars(learner)
            else "X gave no batch."
        )
    _take(model, vars(learner))
    model._fitted = replace(model._fitted, n_iter=1, n_passes=1)
    return model


def _learn(learner: Any, batches: Iterator[Any], beside: dict[str, Iterator[Any]]) -> None:
    """Learn each batch with what goes with it."""
    for number in count():  # `enumerate` would hold a batch while the next is made
        if (batch := next(batches, END)) is END:
            break
        more = {name: next(values, END) for name, values in beside.items()}
        if ended := [name for name, value in more.items() if value is END]:
            raise DataError(f"{ended[0]} ended before X: give {WHAT[ended[0]]} for each batch.")
        try:
            learner.partial_fit(batch, **more)
        except ValueError as error:
            kind, told = (type(error), error.args[1:]) if isinstance(error, DataError) else (DataError, ())
            raise kind(f"Batch {number} of X, counted from 0: {error}", *told) from error
        del batch, more  # before the next is made
    for name, values in beside.items():
        if not isinstance(values, repeat) and next(values, END) is not END:
            raise DataError(f"X ended before {name}: give {WHAT[name]} for each batch.")


def _of_batches(name: str, value: Any) -> Iterator[Any]:
    """What goes with the rows of each batch."""
    if isinstance(value, Iterator):
        return value
    if value is None or isinstance(value, (int, float)):
        return repeat(value)
    raise DataError(f"X is an iterator of batches: {name} has to be an iterator, too, with {WHAT[name]} for each.")


def _take(model: Any, state: dict[str, Any]) -> None:
    """Leave a model with this state of a fit."""
    for name in STATE:
        vars(model).pop(name, None)
    vars(model).update({name: state[name] for name in STATE if name in state})
