"""Model + groups + sample -> one score per unit. The methods register themselves on import."""

from prunecli.importance import activation_density as _activation_density  # noqa: F401
from prunecli.importance import bn_scale as _bn_scale  # noqa: F401
from prunecli.importance import bn_scale_taylor as _bn_scale_taylor  # noqa: F401
from prunecli.importance import contribution as _contribution  # noqa: F401
from prunecli.importance import fisher as _fisher  # noqa: F401
from prunecli.importance import fpgm as _fpgm  # noqa: F401
from prunecli.importance import i_spasp as _i_spasp  # noqa: F401
from prunecli.importance import i_spasp_train as _i_spasp_train  # noqa: F401
from prunecli.importance import lrp as _lrp  # noqa: F401
from prunecli.importance import magnitude as _magnitude  # noqa: F401
from prunecli.importance import oracle as _oracle  # noqa: F401
from prunecli.importance import oracle_combinatorial as _oracle_combinatorial  # noqa: F401
from prunecli.importance import random_scores as _random_scores  # noqa: F401
from prunecli.importance import taylor_fo as _taylor_fo  # noqa: F401
from prunecli.importance import taylor_fo_fg as _taylor_fo_fg  # noqa: F401
from prunecli.importance import taylor_fo_weight as _taylor_fo_weight  # noqa: F401
from prunecli.importance import taylor_output as _taylor_output  # noqa: F401
from prunecli.importance import taylor_so as _taylor_so  # noqa: F401
from prunecli.importance.agreement import Agreement, Coefficients, agreement
from prunecli.importance.engine import score
from prunecli.importance.gates import Gate
from prunecli.importance.look import Journal
from prunecli.importance.oracle import Aggregate
from prunecli.importance.registry import Granularity, build_methods, find_method, methods
from prunecli.importance.scores import About, Scores
from prunecli.importance.sharing import Observations, Share
from prunecli.importance.undisturbed import ScoreBN

__all__ = [
    "About",
    "Aggregate",
    "Agreement",
    "Coefficients",
    "Gate",
    "Granularity",
    "Journal",
    "Observations",
    "ScoreBN",
    "Scores",
    "Share",
    "agreement",
    "build_methods",
    "find_method",
    "methods",
    "score",
]
