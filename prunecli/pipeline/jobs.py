"""Tasks -> their results, in this process or in several; what is stopped is told so, and orphans end."""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

_SECONDS = 0.3
"""How often a process looks whether it should stop."""

Task = TypeVar("Task")
Result = TypeVar("Result")

_busy = threading.Event()
"""Whether this process has a task in hand."""
_stopped = threading.Event()
"""Whether this process should take up no other: some are handed to it ahead, and cannot be called back."""


def run_jobs(
    work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int, on_gpus: bool = False
) -> Iterator[tuple[Task, Result]]:
    """Yield each task with its result, as they come.

    With one job, all is done here. With more, so many processes are started anew; they and what `work`
    closes over must be picklable. When the caller stops, by Ctrl-C or by an error, each of them gets a
    KeyboardInterrupt, and is waited for.

    Args:
        work: What is done with each task.
        tasks: In the order to take them up.
        jobs: How many at a time.
        on_gpus: Whether it runs on GPUs, which are then shared out.
    """
    if jobs == 1 or len(tasks) < 2:
        for task in tasks:
            yield task, work(task)
        return
    context = get_context("spawn")
    stop, started = context.Event(), context.Value("i", 0)
    with ProcessPoolExecutor(min(jobs, len(tasks)), context, _begin, (stop, started, on_gpus)) as pool:
        futures = {pool.submit(_do, work, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _begin(stop: Any, started: Any, on_gpus: bool) -> None:
    """Prepare a process: Ctrl-C is for the first one alone, which tells the others; GPUs are shared out."""
    with suppress(AttributeError, OSError):  # no such groups on Windows
        os.setpgrp()
    with started.get_lock():
        number = started.value
        started.value += 1
    threading.Thread(target=_watch, args=(stop,), daemon=True).start()
    if on_gpus:
        import torch

        torch.cuda.set_device(number % torch.cuda.device_count())


def _do(work: Callable[[Task], Result], task: Task) -> Result:
    _busy.set()
    try:
        if _stopped.is_set():
            raise KeyboardInterrupt
        return work(task)
    finally:
        _busy.clear()


def _watch(stop: Any) -> None:
    """Interrupt what is in hand when the first process stops; end when it is no more."""
    parent = parent_process()
    while not stop.wait(_SECONDS) and parent is not None and parent.is_alive():
        pass
    _stopped.set()
    if _busy.is_set():
        _thread.interrupt_main()
    while parent is not None and parent.is_alive():
        parent.join(_SECONDS)
    while _busy.is_set():
        threading.Event().wait(_SECONDS)
    os._exit(1)
