"""What estimators take over from scikit-learn, with types, which it has none of; and those of queries."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar, cast, overload

import dask.array as da
from sklearn import callback
from sklearn.base import BaseEstimator, DensityMixin

from daskgmm._typing import Array, Data

F = TypeVar("F", bound=Callable[..., Any])


class Query(Protocol):
    """A method that has an answer for each row, of the kind of what it gets."""

    @overload
    def __call__(self, X: Array, *more: Any, **how: Any) -> Array: ...
    @overload
    def __call__(self, X: da.Array, *more: Any, **how: Any) -> da.Array: ...
    @overload
    def __call__(self, X: Data, *more: Any, **how: Any) -> Any: ...


def query(method: Callable[..., Any]) -> Query:
    """The method itself, with the types of a `Query`; a decorator."""
    return cast(Query, method)


def with_callbacks(method: F) -> F:
    """scikit-learn's decorator of a ``fit`` that calls callbacks."""
    return cast(F, callback.with_callbacks(method))


if TYPE_CHECKING:

    class Scikit:
        """What of scikit-learn's classes is used, here or by users; they would allow any name."""

        _parameter_constraints: ClassVar[dict[str, Any]]
        _skl_callbacks: Any

        @classmethod
        def _get_param_names(cls) -> list[str]: ...
        def _validate_params(self) -> None: ...
        def _init_callback_context(self, max_subtasks: int | None = None) -> Any: ...
        def _html_repr(self) -> str: ...
        def _repr_html_(self) -> str: ...
        def get_params(self, deep: bool = True) -> dict[str, Any]: ...
        def set_params(self, **params: Any) -> Self: ...
        def set_callbacks(self, *callbacks: Any) -> Self: ...
        def set_fit_request(self, **requests: bool | str | None) -> Self: ...
        def set_partial_fit_request(self, **requests: bool | str | None) -> Self: ...
        def set_score_request(self, **requests: bool | str | None) -> Self: ...
        def get_metadata_routing(self) -> Any: ...
        def __sklearn_tags__(self) -> Any: ...

else:

    class Scikit(callback.CallbackSupportMixin, DensityMixin, BaseEstimator):
        """Parameters, tags, representations and callbacks."""
