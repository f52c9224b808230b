"""`oracle` against a copy of the network in which the unit's parameters are zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (the customary name)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunecli.graph.groups import find_groups
from prunecli.importance import ScoreBN, score
from prunecli.importance.ablation import Ablation, Way
from prunecli.importance.gates import refuse_ungated
from tests.graph.nets import BY_NAME, CASES, Case
from tests.importance.gated import Setting, bent, looking, loss_without, setting

NO_TWIN = {
    "ArgmaxOutput": "puts out which number is the largest",
    "WeightNorm": "divides by the norm of its weights, so that none may be zero",
    "Noise": "is another network each time",
    "Lstm": "has no groups",
    "AuxiliaryHead": "has a group that no forward pass of eval mode runs",
}
COMPARED = [each for each in CASES if each.groups and each.name not in NO_TWIN]


def assert_near(found: Tensor, expected: Tensor) -> None:
    allowed = 1e-9 * max(float(expected.abs().max()), 1e-3)
    torch.testing.assert_close(found, expected, rtol=0, atol=allowed)


def changes(where: Setting) -> dict[str, Tensor]:
    """Return by how much the loss of the sample rises without each unit, from copies of the network."""
    dense = loss_without(where, where.groups[0], [])
    return {
        group.name: torch.tensor(
            [loss_without(where, group, [unit]) - dense for unit in range(group.width)], dtype=torch.float64
        )
        for group in where.groups
    }


@pytest.mark.parametrize("case", COMPARED, ids=lambda each: each.name)
def test_a_unit_that_is_off_is_one_without_parameters(case: Case) -> None:
    where = setting(case)
    expected = changes(where)
    with looking(where) as look:
        for group in where.groups:
            found = look.changes_without(group, torch.eye(group.width, dtype=torch.int64))
            assert_near(found, expected[group.name])
            subset = torch.ones(1, group.width, dtype=torch.int64)
            subset[0, ::2] = 0
            off = list(range(1, group.width, 2))
            if off:
                together = loss_without(where, group, off) - loss_without(where, group, [])
                assert_near(
                    look.changes_without(group, subset), torch.tensor([together], dtype=torch.float64)
                )


@pytest.mark.parametrize("aggregate", ("dataset-sq", "batch-abs"))
def test_both_aggregates_by_hand(aggregate: str) -> None:
    where = setting(BY_NAME["ConvBn"], samples=7)
    (inputs,), targets = where.batch
    parts = [Setting(where.model, where.structure, (inputs[a:b],)) for a, b in ((0, 4), (4, 7))]
    found = score(
        where.model, where.structure, [(inputs, targets)], bent, ["oracle"], micro_batch=4,
        method_args={"aggregate": aggregate},
    )["oracle"]  # fmt: skip
    first, second = map(changes, parts)
    for name, values in found.by_group.items():
        if aggregate == "batch-abs":
            expected = (first[name].abs() + second[name].abs()) / 2
        else:
            expected = ((4 * first[name] + 3 * second[name]) / 7).square()
        torch.testing.assert_close(values, expected, rtol=1e-8, atol=1e-15)
    dense = [loss_without(part, where.groups[0], []) for part in parts]
    assert found.about.loss == pytest.approx((4 * dense[0] + 3 * dense[1]) / 7)


def test_statistics_of_the_batch_change_with_the_unit() -> None:
    """With gates behind normalisations it is zero parameters there too, in a network in train mode."""
    where = setting(BY_NAME["ConvBn"])
    norms = {name for name, module in where.model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    with looking(where, score_bn=ScoreBN.TRAIN) as look:
        found = {g.name: look.changes_without(g, torch.eye(g.width, dtype=torch.int64)) for g in where.groups}
        assert look.conditions.known == {}  # whole passes: nothing is recorded
    for name in norms:
        where.model.get_submodule(name).train()
    for name, values in changes(where).items():
        assert_near(found[name], values)


WAYS = {
    "ConvBn": Way.AT_READERS,
    "LayerNorm": Way.AT_GATES,  # what is off is not zero behind it
    "TorchAttention": Way.AT_GATES,  # queries and keys change more than their own readers see
    "ChannelAttention": Way.AT_GATES,
}


@pytest.mark.parametrize("name", WAYS)
def test_the_fastest_way_that_is_right_is_taken(name: str) -> None:
    where = setting(BY_NAME[name])
    with looking(where) as look:
        for group in where.groups:
            look.changes_without(group, torch.eye(group.width, dtype=torch.int64))
        taken = set(look.conditions.known["ways"].values())
    assert max(taken, key=list(Way).index) is WAYS[name]


def test_code_that_writes_into_slices_is_run_as_a_whole() -> None:
    where = setting(BY_NAME["SliceWrite"])
    with looking(where) as look:
        look.changes_without(where.groups[0], torch.eye(where.groups[0].width, dtype=torch.int64))
        assert look.conditions.known["replay"] is False
        assert "ways" not in look.conditions.known


class Row(nn.Module):
    """Five convolutions in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(5))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x).relu()
        return self.head(x.mean((2, 3)))


class Convolutions(TorchDispatchMode):
    """Notes the input channels of each convolution that is carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in str(func):
            self.seen.append(args[0].shape[1])
        return func(*args, **kwargs or {})


def test_only_what_follows_the_unit_is_computed_again() -> None:
    torch.manual_seed(0)
    model = Row().double().eval()
    inputs = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    where = Setting(model, find_groups(model, (inputs[:1],)), (inputs,))
    with looking(where) as look:
        for group in where.groups:
            each = torch.eye(group.width, dtype=torch.int64)
            look.changes_without(group, each)  # the way is chosen
            with Convolutions() as watch:
                look._ablation.changes(group, 1 - each.double())
            place = int(group.name.rpartition(".")[2])
            # The reader subtracts what one channel gave; the convolutions behind it run in full.
            assert watch.seen == ([1] + [3] * (3 - place) if place < 4 else []) * 3


@pytest.mark.parametrize("name", ("Residual", "Dense", "TorchAttention"))
def test_several_variants_at_once_are_as_good_as_one_by_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = setting(BY_NAME[name])
    found = []
    for count in (1, 3):
        monkeypatch.setattr("prunecli.importance.ablation.Run._at_once", lambda *_, n=count: n)
        with looking(where) as look:
            found.append(
                {g.name: look.changes_without(g, torch.eye(g.width, dtype=torch.int64)) for g in where.groups}
            )
            assert Way.WHOLE not in look.conditions.known["ways"].values()
    for group, values in found[0].items():
        assert_near(found[1][group], values)


@pytest.mark.parametrize("memory", (1, 20_000, 60_000))
def test_a_micro_batch_that_does_not_fit_is_taken_in_parts(memory: int) -> None:
    where = setting(BY_NAME["Residual"])
    expected = changes(where)
    with looking(where, memory=memory) as look:
        assert len(look._ablation._parts) > 1
        assert look._ablation.dense == pytest.approx(loss_without(where, where.groups[0], []))
        for group in where.groups:
            found = look.changes_without(group, torch.eye(group.width, dtype=torch.int64))
            assert_near(found, expected[group.name])


def by_keyword(weight: Tensor, x: Tensor) -> Tensor:
    return F.linear(input=x, weight=weight)


def by_half_keyword(weight: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, weight=weight)


def by_transposing(weight: Tensor, x: Tensor) -> Tensor:
    return x @ weight.t()


@pytest.mark.parametrize("read", (by_keyword, by_half_keyword, by_transposing), ids=lambda f: f.__name__)
def test_functional_code(read: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 5), nn.Parameter(torch.randn(3, 5))

        def forward(self, x: Tensor) -> Tensor:
            return read(self.two, F.relu(self.one(x), inplace=True))

    torch.manual_seed(0)
    model = Functional().double().eval()
    inputs = torch.randn(6, 4, dtype=torch.float64)
    where = Setting(model, find_groups(model, (inputs[:1],)), (inputs,))
    if not where.groups:
        pytest.skip("the code is not followed")
    with looking(where) as look:
        (group,) = where.groups
        assert refuse_ungated(group) is None
        found = look.changes_without(group, torch.eye(5, dtype=torch.int64))
    assert_near(found, changes(where)["one"])


def test_what_was_found_is_asked_of_the_journal_first() -> None:
    where, kept, looked = setting(BY_NAME["Mlp"]), {}, []

    def journal(key: str, find: Callable[[], Tensor]) -> Tensor:
        if key not in kept:
            kept[key] = find()
        return kept[key]

    batches = [where.batch, where.batch]
    runs = []
    for _ in range(2):
        where.model.register_forward_hook(lambda *_: looked.append(1))
        runs.append(
            score(where.model, where.structure, batches, bent, ["oracle"], micro_batch=6, journal=journal)
        )
        if len(runs) == 1:
            assert looked
            looked.clear()
    assert not looked
    assert runs[0]["oracle"].to_bytes() == runs[1]["oracle"].to_bytes()
    assert runs[0]["oracle"].about.loss is not None


def test_the_model_of_a_replay_is_left_alone() -> None:
    where = setting(BY_NAME["Residual"])
    before = copy.deepcopy(where.model.state_dict())
    with looking(where) as look, torch.no_grad():
        Ablation(look).changes(where.groups[0], torch.zeros(1, where.groups[0].width, dtype=torch.float64))
    assert all(torch.equal(value, before[name]) for name, value in where.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in where.model.modules())
