"""The story of `methods`: the table of methods, whole or one row."""

from prunecli.importance.registry import MethodInfo, find_method, methods


def all_methods() -> tuple[MethodInfo, ...]:
    """Return all methods, by name."""
    return methods()


def one_method(name: str) -> MethodInfo:
    """Return the method called `name`.

    Raises:
        UsageError: there is none.
    """
    return find_method(name)
