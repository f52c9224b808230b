"""The story of `methods`: the tables of methods, for units and for weights, whole or by one name."""

import prunecli.weights as _weights  # noqa: F401  (its methods register themselves)
from prunecli.arguments import nearest
from prunecli.errors import UsageError
from prunecli.importance import Granularity, methods
from prunecli.importance.registry import MethodInfo


def all_methods() -> tuple[MethodInfo, ...]:
    """Return all methods by name, those for units first."""
    return tuple(info for each in Granularity for info in methods(each))


def methods_called(name: str) -> tuple[MethodInfo, ...]:
    """Return the method of that name for units, and that for weights, as far as there are such.

    Raises:
        UsageError: there is none.
    """
    every = all_methods()
    if found := tuple(info for info in every if info.name == name):
        return found
    hint = nearest(name, dict.fromkeys(info.name for info in every))
    raise UsageError(f"There is no method `{name}`.{hint} `prunecli methods` lists them all.")
