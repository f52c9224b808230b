"""Runs the dense model beside another one, always one step ahead, and hands over what its calls put out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from queue import Empty, Full, Queue
from threading import Event, Thread
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.errors import NotPrunableError
from prunecli.graph.calls import CallWatch, following
from prunecli.graph.structure import CallKey

_TICK = 0.2


class Alongside(AbstractContextManager["Alongside"]):
    """The results of some calls of a model, one after the other, without keeping those in between.

    Args:
        model: The dense model, which nobody else runs meanwhile.
        args: Its positional inputs.
        kwargs: Its inputs by name.
        wanted: The calls whose results are asked for, in the order they run.
    """

    def __init__(
        self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], wanted: Collection[CallKey]
    ) -> None:
        self.model, self.args, self.kwargs, self.wanted = model, args, kwargs, set(wanted)
        self._queue: Queue[tuple[CallKey | None, Tensor | BaseException | None]] = Queue(maxsize=1)
        self._stop = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> Alongside:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def take(self, key: CallKey) -> Tensor:
        """Return what the dense model's call put out.

        Raises:
            NotPrunableError: It takes another path than the smaller model, so that they cannot be compared.
        """
        while True:
            try:
                found, result = self._queue.get(timeout=_TICK)
                break
            except Empty:
                continue
        if isinstance(result, BaseException):
            raise result
        if found != key or result is None:
            raise NotPrunableError(
                f"The smaller model runs `{key.function}` in `{key.module or 'the model'}` where the dense "
                "one does not: their outputs cannot be compared. Leave out `--reconstruct`."
            )
        return result

    def _run(self) -> None:
        try:
            with torch.no_grad(), following(self.model) as modules, _HandOver(modules, self):
                self.model(*self.args, **self.kwargs)
            self.put((None, None))
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001  (it is raised again where the result is waited for)
            self.put((None, error))

    def put(self, item: tuple[CallKey | None, Tensor | BaseException | None]) -> None:
        """Wait until the item is taken, or nobody waits for it any more."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_TICK)
                return
            except Full:
                continue


class _StoppedError(Exception):
    """Nobody waits for results any more."""


class _HandOver(CallWatch):
    """Hands over results that are wanted."""

    def __init__(self, modules: Sequence[str], alongside: Alongside) -> None:
        super().__init__(modules)
        self.alongside = alongside

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Carry out one call; a copy of its result is handed over, as the next call may write to it."""
        result = func(*args, **kwargs)
        if key in self.alongside.wanted:
            self.alongside.put((key, result.clone()))
        if self.alongside._stop.is_set():
            raise _StoppedError
        return result
