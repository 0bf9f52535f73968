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


def fit_batches(model: M, batches: Iterator[Any], sample_weight: Any) -> M:
    """``model``, once it has learnt all batches, from the beginning unless ``warm_start``; one is held at a time.

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
        _learn(learner, batches, _weights(sample_weight))
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


def _learn(learner: Any, batches: Iterator[Any], weights: Iterator[Any]) -> None:
    """Learn each batch with its weights."""
    for number in count():  # `enumerate` would hold a batch while the next is made
        if (batch := next(batches, END)) is END:
            break
        if (weight := next(weights, END)) is END:
            raise DataError("sample_weight ended before X: give weights for each batch.")
        try:
            learner.partial_fit(batch, sample_weight=weight)
        except ValueError as error:
            kind, more = (type(error), error.args[1:]) if isinstance(error, DataError) else (DataError, ())
            raise kind(f"Batch {number} of X, counted from 0: {error}", *more) from error
        del batch, weight  # before the next is made
    if not isinstance(weights, repeat) and next(weights, END) is not END:
        raise DataError("X ended before sample_weight: give weights for each batch.")


def _weights(sample_weight: Any) -> Iterator[Any]:
    """Weights for each batch."""
    if isinstance(sample_weight, Iterator):
        return sample_weight
    if sample_weight is None or isinstance(sample_weight, (int, float)):
        return repeat(sample_weight)
    raise DataError(
        "X is an iterator of batches: sample_weight has to be an iterator, too, with weights for each."
    )


def _take(model: Any, state: dict[str, Any]) -> None:
    """Leave a model with this state of a fit."""
    for name in STATE:
        vars(model).pop(name, None)
    vars(model).update({name: state[name] for name in STATE if name in state})
