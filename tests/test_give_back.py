"""Memory that is free goes back to the system, where the C library can do that."""

from __future__ import annotations

import ctypes

import pytest

from prunecli.give_back import give_back


def test_free_memory_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Library:
        malloc_trim = staticmethod(asked.append)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    give_back()
    assert asked == [0]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    give_back()
    assert ctypes.CDLL(None) is not None
