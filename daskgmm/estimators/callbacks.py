"""scikit-learn's callbacks: a fit is the root task, each iteration one of its own."""

from __future__ import annotations

from typing import Any

from daskgmm.estimators.fitted import Fitted
from daskgmm.fit.run import best
from daskgmm.fit.state import State


class Callbacks:
    """Calls the hooks of the callbacks that were set on an estimator with ``set_callbacks``, if any.

    An iteration's hooks get a fitted copy of the estimator, which is made only if they ask for it; one that returns
    True ends the fit there.
    """

    def __init__(self, model: Any, X: Any, metadata: dict[str, Any]) -> None:
        self.asked = {"estimator": model, "X": X, "metadata": metadata}
        self.root = self.task = None
        self.iterations = -1
        if hasattr(model, "_skl_callbacks") or hasattr(model, "_parent_callback_ctx"):
            self.root = model._init_callback_context(max_subtasks=None)
            self.root.call_on_fit_task_begin(**self.asked)

    def reached(self, state: State) -> bool:
        """Tell that the fit stands here; whether it is to end."""
        if self.root is None or not state.runs or state.mid_pass:
            return False
        ended = False
        if self.task is not None and state.n_iter > self.iterations:
            ended = self.task.call_on_fit_task_end(**self.asked, reconstruction_attributes=lambda: _so_far(state))
            self.task = None
        self.iterations = state.n_iter
        if not state.done and not ended:
            self.task = self.root.subcontext(task_name=f"iteration {state.n_iter + 1}")
            self.task.call_on_fit_task_begin(**self.asked, reconstruction_attributes=lambda: _so_far(state))
        return ended

    def ended(self, state: State) -> None:
        """Tell that the fit is over."""
        if self.root is not None:
            self.root.call_on_fit_task_end(**self.asked, reconstruction_attributes=lambda: _so_far(state))


def _so_far(state: State) -> dict[str, Any]:
    """What makes a copy of the estimator a fitted one."""
    return {"_fitted": Fitted.of(best(state.runs), state.n_passes, None)}
