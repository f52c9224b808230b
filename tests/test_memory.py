from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
import torch

from prunecli.memory import at_most, is_for_want_of_memory

resource = pytest.importorskip("resource")
TAKERS: dict[str, Callable[[], object]] = {
    "Python": lambda: bytearray(2**30),
    "PyTorch": lambda: torch.empty(2**30, dtype=torch.uint8),
}


@pytest.mark.parametrize("who", TAKERS)
def test_no_more_is_given_than_was_said(who: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    take = TAKERS[who]
    with at_most(2**28), pytest.raises((MemoryError, RuntimeError)) as refused:
        take()
    assert is_for_want_of_memory(refused.value)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    with at_most(2**31):
        take()


def test_a_lower_limit_stays() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (2**40, before[1]))
    try:
        with at_most(2**50):
            assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 2**40
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def test_where_nobody_can_tell_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunecli.memory._taken", lambda: None)
    with at_most(0):
        assert bytearray(2**20)


@pytest.mark.parametrize(
    "error",
    (
        ImportError("a.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("Resource temporarily unavailable"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ),
)
def test_all_who_give_memory_are_understood(error: Exception) -> None:
    assert is_for_want_of_memory(error)


def test_other_errors_are_not_for_want_of_memory() -> None:
    assert not is_for_want_of_memory(ValueError("no"))
