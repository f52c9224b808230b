"""Model + groups + sample -> one score per unit. The methods register themselves on import."""

from prunecli.importance import bn_scale as _bn_scale  # noqa: F401
from prunecli.importance import magnitude as _magnitude  # noqa: F401
from prunecli.importance import random_scores as _random_scores  # noqa: F401
from prunecli.importance import taylor_fo as _taylor_fo  # noqa: F401
from prunecli.importance import taylor_fo_weight as _taylor_fo_weight  # noqa: F401
from prunecli.importance.engine import score
from prunecli.importance.registry import build_methods, find_method, methods
from prunecli.importance.scores import About, Scores
from prunecli.importance.undisturbed import ScoreBN

__all__ = ["About", "ScoreBN", "Scores", "build_methods", "find_method", "methods", "score"]
