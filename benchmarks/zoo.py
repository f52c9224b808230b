"""Every classification network of torchvision: find its groups, prune it to half, prove the result.

Weights are random. Each network is pruned twice: with scope `layer` by chance, and with scope `global`
by magnitude. A network that fails is reported and the others go on.

    python -m benchmarks.zoo
    python -m benchmarks.zoo resnet18 'vit_*' --scope layer --json
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import filter as matching
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from benchmarks.networks import architectures, build, family, image_size, pictures
from prunecli import apply_plan, find_groups, make_plan, score, verify
from prunecli.graph.structure import Structure
from prunecli.plan import Scope

METHODS = {Scope.LAYER: "random", Scope.GLOBAL: "magnitude"}
EXPLAINED_BELOW = 0.999
"""Networks with a lower share of parameters inside groups are listed with the reasons."""
_NUMBERS = re.compile(r"\d+(, \d+)*")
"""Left out of reasons, so that they are alike in layers of all sizes."""


@dataclass(frozen=True)
class Cut:
    """One pruned network and its proof."""

    scope: str
    method: str
    params: int
    structure_error: float
    structure_dtype: str
    numbers_error: float
    seconds: float
    """To score, plan and cut."""
    proof_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What became of one network. `failure` is empty if all went well."""

    name: str
    family: str
    groups: int = 0
    units: int = 0
    params: int = 0
    share: float = 0.0
    """Parameters in tensors of which some axis can be cut, over all parameters."""
    seconds: float = 0.0
    """To trace, group and probe."""
    cuts: tuple[Cut, ...] = ()
    whole: tuple[tuple[str, int], ...] = ()
    """(why, parameters) of the tensors that no group touches, the largest first."""
    failure: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if any network failed."""
    options = _parser().parse_args(arguments)
    names = _matching(options.names)
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    progress = sys.stderr if options.json else sys.stdout
    scopes = [Scope(name) for name in options.scope or METHODS]
    outcomes = []
    for name in names:
        outcomes.append(examine(name, size=options.size, scopes=scopes))
        print(_line(outcomes[-1]), file=progress, flush=True)
    if options.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    else:
        print("\n".join(["", *_summary(outcomes), "", *_reasons(outcomes)]))
    return int(any(outcome.failure for outcome in outcomes))


def examine(name: str, *, size: int | None = None, scopes: Iterable[Scope] = tuple(Scope)) -> Outcome:
    """Find the groups of one network, prune it to half of its units in each scope, and prove each result."""
    step = "find"
    try:
        model = build(name, size)
        batch = pictures(image_size(name, size), 2)
        start = perf_counter()
        structure = find_groups(model, (batch[:1],))
        seconds = perf_counter() - start
        cuts = []
        for scope in scopes:
            step = scope.value
            cuts.append(_cut(model, structure, batch, scope))
    except Exception as error:  # whatever it is, the other networks are still worth measuring
        return Outcome(name, family(name), failure=f"{step}: {type(error).__name__}: {error}")
    params, whole = structure.parameter_count({}), _whole_tensors(structure)
    share, reasons = 1 - sum(whole.values()) / params, _by_reason(structure, whole)
    return Outcome(
        name, family(name), len(structure.groups), structure.unit_count, params, share, seconds,
        tuple(cuts), tuple(reasons.most_common()),
    )  # fmt: skip


def _cut(model: nn.Module, structure: Structure, batch: Tensor, scope: Scope) -> Cut:
    """Prune to half of the units and prove it.

    Raises:
        PruneError: a step refused, or the proof failed.
        RuntimeError: the smaller network has another size than planned.
    """
    method = METHODS[scope]
    start = perf_counter()
    scores = score(model, structure, methods=[method])[method]
    plan = make_plan(structure, scores, budget="keep=0.5", scope=scope)
    pruned = apply_plan(model, structure, plan)
    middle = perf_counter()
    parity = verify(model, pruned, structure, plan, (batch,))
    end = perf_counter()
    params, planned = sum(p.numel() for p in pruned.parameters()), structure.parameter_count(plan.kept())
    if params != planned:
        raise RuntimeError(f"the plan has {planned:,} parameters, the smaller network {params:,}")
    return Cut(
        scope.value, method, params, parity.structure_error, parity.structure_dtype, parity.numbers_error,
        middle - start, end - middle,
    )  # fmt: skip


def _whole_tensors(structure: Structure) -> dict[str, int]:
    """Return the parameters that no group touches, with their sizes."""
    return {name: math.prod(tensor.shape) for name, tensor in structure.parameters() if not any(tensor.axes)}


def _by_reason(structure: Structure, whole: dict[str, int]) -> Counter[str]:
    """Return how many parameters stay whole for each reason, or each set of reasons."""
    why = defaultdict(set)
    for frozen in structure.frozen:
        for tensor in frozen.tensors:
            why[tensor].add(_NUMBERS.sub("...", frozen.reason))
    counts: Counter[str] = Counter()
    for name, size in whole.items():
        counts["; ".join(sorted(why[name])) or "no reason given"] += size
    return counts


def _line(outcome: Outcome) -> str:
    """Return one row of the table."""
    if outcome.failure:
        return f"{outcome.name:<19} FAILED {outcome.failure}"
    found = (
        f"{outcome.name:<19} groups {outcome.groups:>4}  units {outcome.units:>6}  "
        f"params {outcome.params / 1e6:>6.1f} M  in groups {_percent(outcome.share):>8}  "
        f"find {outcome.seconds:>5.2f} s"
    )
    return "  ".join([found, *(_describe(cut, outcome.params) for cut in outcome.cuts)])


def _describe(cut: Cut, params: int) -> str:
    return (
        f"| {cut.scope}: params left {_percent(cut.params / params):>7}  cut {cut.seconds:.2f} s  "
        f"proof {cut.proof_seconds:.1f} s  errors {cut.structure_error:.0e} ({cut.structure_dtype}) "
        f"{cut.numbers_error:.0e}"
    )


def _summary(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield one row per family, and the totals."""
    yield f"{'family':<19}  passed  params in groups      find (median)  largest errors: random, real weights"
    for name in sorted({outcome.family for outcome in outcomes}):
        yield _summary_row(name, [outcome for outcome in outcomes if outcome.family == name])
    yield _summary_row("all", outcomes)


def _summary_row(name: str, outcomes: Sequence[Outcome]) -> str:
    passed = [outcome for outcome in outcomes if not outcome.failure]
    row = f"{name:<19} {len(passed):>2} of {len(outcomes):<2}"
    if not passed:
        return row
    cuts = [cut for outcome in passed for cut in outcome.cuts]
    return (
        f"{row}  {_range(outcome.share for outcome in passed):<20}  "
        f"{median(outcome.seconds for outcome in passed):>6.2f} s  "
        f"       {max(cut.structure_error for cut in cuts):.0e}  {max(cut.numbers_error for cut in cuts):.0e}"
    )


def _reasons(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield why parameters stay whole, for networks where more than a few do: alike ones together."""
    few = [outcome for outcome in outcomes if not outcome.failure and outcome.share < EXPLAINED_BELOW]
    yield f"{len(few)} networks have less than {_percent(EXPLAINED_BELOW)} of their parameters in groups:"
    shares: dict[tuple[str, str], list[float]] = defaultdict(list)
    for outcome in few:
        for reason, size in outcome.whole:
            shares[outcome.family, reason].append(size / outcome.params)
    for (name, reason), found in sorted(shares.items(), key=lambda item: (item[0][0], -max(item[1]))):
        yield f"  {name}, {len(found)} networks, {_range(found)}: {reason}"


def _range(shares: Iterable[float]) -> str:
    low, *_, high = sorted([*shares] * 2)
    return _percent(low) if low == high else f"{_percent(low)} to {_percent(high)}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _matching(patterns: Sequence[str]) -> list[str]:
    """Return the networks that the patterns name, or all.

    Raises:
        SystemExit: a pattern names none.
    """
    known = architectures()
    for pattern in patterns:
        if not matching(known, pattern):
            raise SystemExit(f"`{pattern}` matches no network. There are: {', '.join(known)}")
    wanted = {name for pattern in patterns or ["*"] for name in matching(known, pattern)}
    return [name for name in known if name in wanted]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="names, or patterns such as 'vit_*' (all)")
    parser.add_argument(
        "--scope", action="append", choices=[scope.value for scope in Scope], help="repeatable (all)"
    )
    parser.add_argument("--size", type=int, help="height and width of the pictures (224; inception_v3 299)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--json", action="store_true", help="print JSON; the rows go to standard error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
