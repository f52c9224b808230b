"""Two processes that share the micro-batches score as one does: every method, in real processes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection

import pytest
import torch
from torch.nn.functional import cross_entropy

from prunecli.importance import Observations, Share, methods, score
from tests.importance.test_laws import ARGUMENTS
from tests.structures import conv_norm

METHODS = tuple(info.name for info in methods() if info.needs_data)
Found = dict[str, dict[str, list[float]]]


def scored(share: Share) -> Found:
    """Score by every method that looks at data: 11 samples, so that one process has more than the other."""
    torch.set_num_threads(1)
    case = conv_norm()
    found: Found = {}
    for name in METHODS:
        arguments = ARGUMENTS.get(name, {})
        scores = score(
            case.model, case.structure, [case.batch(11)], cross_entropy, [name],
            micro_batch=4, method_args=arguments, share=share,
        )[name]  # fmt: skip
        assert (scores.about.samples, scores.about.batches) == (11, 3)
        found[name] = {group: values.tolist() for group, values in scores.by_group.items()}
    return found


def one_of_two(rank: int, other: Connection) -> Found:
    def exchange(own: Observations) -> list[Observations]:
        other.send(own)
        both = [own, other.recv()]
        return both if rank == 0 else both[::-1]

    return scored(Share(rank, 2, exchange))


@pytest.fixture(scope="module")
def pairs() -> Iterator[tuple[Found, Found, Found]]:
    context = get_context("spawn")
    left, right = context.Pipe()
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        futures = [pool.submit(one_of_two, rank, end) for rank, end in enumerate((left, right))]
        alone = scored(Share())
        yield alone, *(future.result(timeout=300) for future in futures)


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_score_as_one(method: str, pairs: tuple[Found, Found, Found]) -> None:
    alone, first, second = (each[method] for each in pairs)
    assert first == second
    for group, values in alone.items():
        assert first[group] == pytest.approx(values, rel=1e-9, abs=1e-15)
