"""What a pass borrows is given back, also when it fails."""

from __future__ import annotations

import gc

import pytest

from prunecli.graph.borrowing import uncollected


@pytest.mark.parametrize("was_on", (True, False))
def test_the_collector_is_left_as_it_was(was_on: bool) -> None:
    (gc.enable if was_on else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError), uncollected():
            1 / gc.isenabled()
        assert gc.isenabled() is was_on
    finally:
        gc.enable()
