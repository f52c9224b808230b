"""What a sweep is asked for -> methods with their scopes, and budgets, checked before a file is opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import cast, get_args

from prunecli.arguments import nearest
from prunecli.errors import UsageError
from prunecli.importance import Granularity, find_method, methods
from prunecli.importance.registry import Needs
from prunecli.pipeline.deciding import check_choices
from prunecli.pipeline.idle import refuse_idle_granularity, refuse_idle_recipe
from prunecli.pipeline.learning import with_learning
from prunecli.pipeline.masking import with_weight_settings
from prunecli.pipeline.scoring import split_argument
from prunecli.pipeline.settings import Budget, Choices, Importance, ScopeName, SweepChoices
from prunecli.recipe import Recipe

ALL = "all"
_COMPARED = (
    "magnitude", "magnitude@layer", "gradient", "gradient@layer", "activation", "activation@layer",
    "lap", "lap@layer", "lamp", "snip", "grasp", "synflow", "random",
)  # fmt: skip
"""What `all` means for weights: the rows of METHODS 10; `snip-grad` and `obd` where they are named."""


@dataclass(frozen=True)
class Contender:
    """A method as a sweep compares it."""

    method: str
    scope: ScopeName
    arguments: tuple[str, ...] = ()
    """Those of all that were given that it has."""


def check_sweep(choices: SweepChoices) -> None:
    """Refuse what makes no sense, or would do nothing.

    Raises:
        UsageError: naming the option.
    """
    if choices.swept.seeds < 1 or choices.swept.jobs < 1:
        raise UsageError("`--seeds` and `--jobs`: expected whole numbers from 1 on.")
    choices.recipe.check()
    trained = {item.name for item in fields(Recipe)} - {"epochs"}
    if choices.recipe.epochs:
        refuse_idle_recipe(choices.recipe, choices.given)
    elif idle := sorted((trained | {"train_data"}) & choices.given):
        name = idle[0].replace("_", "-")
        raise UsageError(f"`--{name}` does nothing without `--epochs`: nothing is trained. Leave it out.")
    recovers = choices.recovery.recalibrate_bn or choices.recovery.reconstruct
    if "recovery_samples" in choices.given and not recovers:
        raise UsageError(
            "`--recovery-samples` does nothing without `--reconstruct` or `--recalibrate-bn`. Leave it out."
        )
    for asked in asked_of(choices):
        refuse_idle_granularity(replace(asked, given=choices.given))
        check_choices(asked)


def asked_of(choices: SweepChoices) -> tuple[Choices, ...]:
    """Return what each trial of one seed is told: by method, then by budget, in the order given.

    Raises:
        UsageError: a method or an argument is unknown, or there is no method or budget.
    """
    budgets = list(_budgets(choices))
    told = [
        with_learning(with_weight_settings(_told(choices, contender, budget)))
        for contender in contenders(choices)
        for budget in budgets
    ]
    return tuple(replace(each, given=frozenset()) for each in told)


def contenders(choices: SweepChoices) -> tuple[Contender, ...]:
    """Return the methods to compare.

    Raises:
        UsageError: one is unknown, or an argument is of none of them; there is none.
    """
    compared = choices.compared
    granularity = Granularity(compared.granularity)
    names = [name for text in _split(compared.method) for name in _meant(text, granularity)]
    if not names:
        raise UsageError(
            "Say what to compare: `--method magnitude,random`, a method with a scope of its own as in "
            f"`magnitude@layer`, or `--method {ALL}`."
        )
    found = dict.fromkeys(_contender(name, choices) for name in names)
    given = {split_argument(text, "--method-arg")[0] for text in compared.method_arg}
    for argument in sorted(given):
        if not any(argument in find_method(each.method, granularity).arguments for each in found):
            raise UsageError(
                f"No method of the sweep has an argument `{argument}`. `prunecli methods NAME` lists them."
            )
    return tuple(found)


def _meant(text: str, granularity: Granularity) -> Iterator[str]:
    """Yield what a name stands for: `all` for all that is usual, and that there is."""
    there = {info.name: info for info in methods(granularity)}
    if text != ALL:
        yield text
    elif granularity is Granularity.WEIGHT:
        yield from (name for name in _COMPARED if name.partition("@")[0] in there)
    else:  # but for what takes a pass per unit
        yield from (name for name, info in there.items() if Needs.LOSSES not in info.needs)


def _contender(text: str, choices: SweepChoices) -> Contender:
    name, at, scope = text.partition("@")
    scopes = get_args(ScopeName)
    if at and scope not in scopes:
        hint = nearest(scope, scopes)
        raise UsageError(
            f"`--method {text}`: `{scope}` is no scope.{hint} Expected one of {', '.join(scopes)}."
        )
    info = find_method(name, Granularity(choices.compared.granularity))
    own = tuple(
        argument
        for argument in choices.compared.method_arg
        if split_argument(argument, "--method-arg")[0] in info.arguments
    )
    return Contender(name, cast(ScopeName, scope) if at else choices.swept.scope, own)


def _budgets(choices: SweepChoices) -> Iterator[dict[str, str]]:
    """Yield each budget once, however it is written, as the field of `Budget` that says it.

    Raises:
        UsageError: there is none.
    """
    swept = choices.swept
    found: dict[object, dict[str, str]] = {}
    for name, texts in (("ratio", swept.ratio), ("keep", swept.keep), ("target", swept.target)):
        for text in _split(texts):
            found.setdefault((name, *_amount(text)), {name: text})
    if not found:
        usual = "`--ratio 1,2,4,8`" if choices.compared.granularity == "weight" else "`--keep 1,0.75,0.5`"
        raise UsageError(f"Say which budgets to go through: {usual}.")
    yield from found.values()


def _amount(text: str) -> tuple[str, object]:
    """Return what a budget counts, and how much; as it is written where that is no plain number or share.

    >>> _amount("macs=50%"), _amount("0.50") == _amount("50%"), _amount("macs=1") == _amount("macs=1.0")
    (('macs', Fraction(1, 2)), True, False)
    """
    what, equals, amount = text.rpartition("=")
    if not equals or "%" in amount or "." in amount:  # `macs=1` is one of them, not all
        with suppress(ValueError, ZeroDivisionError):
            return what, Fraction(amount.removesuffix("%")) / (100 if amount.endswith("%") else 1)
    return what, amount


def _told(choices: SweepChoices, contender: Contender, budget: dict[str, str]) -> Choices:
    compared, swept = choices.compared, choices.swept
    return Choices(
        source=choices.source,
        samples=choices.samples,
        start=choices.start.as_start(),
        importance=Importance(
            method=(contender.method,),
            method_arg=contender.arguments,
            granularity=compared.granularity,
            fallback=compared.fallback,
            score_bn=compared.score_bn,
        ),
        budget=Budget(
            scope=contender.scope,
            rank=swept.rank,
            min_keep=swept.min_keep,
            round_to=swept.round_to,
            ignore=swept.ignore,
            keep_layer=swept.keep_layer,
            **budget,
        ),
        weights=choices.weights.as_weights(),
        recovery=choices.recovery,
        machine=choices.machine,
        recipe=Recipe(**{item.name: getattr(choices.recipe, item.name) for item in fields(Recipe)}),
        given=choices.given | {"method"},
    )


def _split(texts: Iterable[str]) -> list[str]:
    """Return what stands between commas.

    >>> _split(("1,2", "4"))
    ['1', '2', '4']
    """
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]
