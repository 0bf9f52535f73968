"""Pictures of mixtures and fits, as scikit-learn's displays: ``from_estimator``, then ``figure_`` and ``ax_``.

They need matplotlib, which the extra ``plot`` brings.
"""

from daskgmm.display.convergence import ConvergenceDisplay
from daskgmm.display.evolution import EvolutionDisplay
from daskgmm.display.mixture import MixtureDisplay
from daskgmm.display.progress import ProgressBar
from daskgmm.display.search import SearchDisplay
from daskgmm.display.stream import StreamDisplay

__all__ = [
    "ConvergenceDisplay",
    "EvolutionDisplay",
    "MixtureDisplay",
    "ProgressBar",
    "SearchDisplay",
    "StreamDisplay",
]
