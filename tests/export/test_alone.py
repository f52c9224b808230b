"""Signals that wait, folders for one at a time, and parts that killed processes left."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from prunecli.export import alone
from prunecli.export.alone import alone_in, claim, name_of_part, remove_leftovers, undisturbed
from prunecli.export.files import write_files

OLD = time.time() - 2 * alone.SECONDS_OF_DOUBT


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_a_signal_waits_until_the_block_is_over(number: int) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda number, _: heard.append(number))
    try:
        with undisturbed():
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert heard == []
        assert heard == [number]
        assert signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler)
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with undisturbed():
            signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_hear_no_signals_and_need_no_care() -> None:
    seen: list[bool] = []

    def work() -> None:
        with undisturbed():
            seen.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]


def test_a_folder_is_for_one_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with alone_in([tmp_path, tmp_path]) as is_alone:
            order.append(f"second {is_alone}")

    thread = threading.Thread(target=second)
    with alone_in([tmp_path]) as is_alone:
        thread.start()
        thread.join(0.1)
        order.append(f"first {is_alone}")
    thread.join()
    assert order == ["first True", "second True"]


def test_who_holds_a_folder_for_long_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "SECONDS_TO_WAIT", 0.05)
    with alone_in([tmp_path]), alone_in([tmp_path]) as is_alone:
        assert not is_alone
    with alone_in([tmp_path / "missing"]) as is_alone:
        assert not is_alone


def leftover(target: Path, token: str = "0123abcd") -> Path:
    part = name_of_part(target, token)
    part.write_bytes(b"half")
    os.utime(part, (OLD, OLD))
    return part


def test_an_old_part_that_nobody_writes_goes(tmp_path: Path) -> None:
    target = tmp_path / "net[1].onnx"
    others = [
        leftover(tmp_path / "other.onnx"),
        leftover(target, "not-hex!"),
        leftover(target, "00000000"),
        leftover(target, "11111111"),
    ]
    others[2].write_bytes(b"somebody is just beginning")  # so it is new
    with ExitStack() as stack:
        with others[3].open("r+b") as file:
            claim(file.fileno(), stack)
        part = leftover(target)
        remove_leftovers(target)
        assert not part.exists()
        assert all(other.exists() for other in others)
    remove_leftovers(target)
    assert [other.exists() for other in others] == [True, True, True, False]


def test_a_link_with_such_a_name_is_left_alone(tmp_path: Path) -> None:
    target, link = tmp_path / "x.bin", tmp_path / ".x.bin.0123abcd.part"
    link.symlink_to("elsewhere")
    remove_leftovers(target)
    remove_leftovers(tmp_path / "missing" / "x.bin")
    assert link.is_symlink()


def together(*tasks: Callable[[], object]) -> None:
    """Run tasks in threads that start at the same moment."""
    barrier = threading.Barrier(len(tasks))

    def work(task: Callable[[], object]) -> None:
        barrier.wait()
        task()

    threads = [threading.Thread(target=work, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_the_files_of_two_runs_never_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("net.safetensors", "net.onnx", "net.json")]
    replace, draw = Path.replace, random.Random(0)

    def slowly(self: Path, target: Path) -> Path:
        time.sleep(draw.uniform(0, 0.004))  # or they would hardly ever meet
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", slowly)
    for _ in range(20):
        together(*(partial(write_files, dict.fromkeys(paths, who), True) for who in (b"a", b"b")))
        assert len({path.read_bytes() for path in paths}) == 1
    assert sorted(tmp_path.iterdir()) == sorted(paths)
