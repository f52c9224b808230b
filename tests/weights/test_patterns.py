"""N of every M: against plain loops, with what is masked already, in steps; and whether kernels take it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunecli.errors import UsageError
from prunecli.plan import Scope
from prunecli.weights import MaskRule, Pattern, RatioBase, Selection, WeightBudget, choose_masks
from prunecli.weights.masked import with_masks
from prunecli.weights.patterns import check_semi_structured
from tests.weights.lent import lend

TWO_OF_FOUR = Pattern.parse("2:4")


def twin(scores: Tensor, kept: int, of: int, dim: int) -> Tensor:
    """Sort every few along the inputs, one by one; of equals the last stay."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    others = [range(n) for at, n in enumerate(scores.shape) if at != dim]
    for place in product(*others):
        for first in range(0, scores.shape[dim], of):
            at = [(*place[:dim], first + i, *place[dim:]) for i in range(of)]
            for chosen in sorted(range(of), key=lambda i: (float(scores[at[i]]), i))[of - kept :]:
                mask[at[chosen]] = True
    return mask


@pytest.mark.parametrize(("kept", "of"), ((2, 4), (1, 4), (4, 8), (1, 2), (3, 5)))
@pytest.mark.parametrize("shape", ((5, 40), (3, 40, 3, 2), (2, 40, 4)))
def test_it_is_sorting_every_few(kept: int, of: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    scores = torch.randn(shape).mul(2).round()  # with many equals
    mask = Pattern(kept, of).masks({"w": scores})["w"]
    assert torch.equal(mask, twin(scores, kept, of, 1))
    assert Pattern(kept, of).is_followed("w", mask)
    assert not Pattern(kept, of).is_followed("w", torch.ones_like(mask))
    assert int(mask.sum()) == Pattern(kept, of).count({"w": shape}) == mask.numel() * kept // of


def test_what_is_masked_stays_so_and_fills_the_quota_first() -> None:
    scores = torch.tensor([[9.0, 8, 7, 6, 1, 2, 3, 4]])
    before = torch.tensor([[False, False, True, True, False, True, True, True]])
    mask = TWO_OF_FOUR.masks({"w": scores}, {"w": before})["w"]
    assert mask.int().tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]]
    none = TWO_OF_FOUR.masks({"w": scores}, {"w": torch.zeros_like(before)})["w"]
    assert not none.any()


def test_inputs_of_transposed_convolutions_lie_first() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(8, 3, 2), nn.Conv2d(3, 4, 1))
    pattern = TWO_OF_FOUR.within(model)
    scores = torch.randn(model[0].weight.shape)
    assert torch.equal(pattern.masks({"0.weight": scores})["0.weight"], twin(scores, 2, 4, 0))
    assert pattern.left_dense({"0.weight": (8, 3, 2, 2), "1.weight": (4, 3, 1, 1)}) == ("1.weight",)


def test_what_cannot_be_parted_stays_dense_and_is_named() -> None:
    shapes = {"a": (8, 3, 3, 3), "b": (4, 8), "c": (6,), "d": (2, 5), "e": (3, 7), "f": (9, 1)}
    masks = TWO_OF_FOUR.masks({name: torch.randn(shape) for name, shape in shapes.items()})
    assert [name for name, mask in masks.items() if mask.all()] == ["a", "c", "d", "e", "f"]
    assert TWO_OF_FOUR.notes(shapes) == (
        "The pattern 2:4 leaves `a`, `c`, `d`, `e` and 1 more dense: inputs are no multiple of 4.",
    )
    assert TWO_OF_FOUR.notes({"b": (4, 8)}) == ()


def test_steps_come_to_what_the_pattern_leaves() -> None:
    scores = {"a": torch.randn(3, 8), "b": torch.randn(2, 3)}
    counts = [int(TWO_OF_FOUR.masks(scores, None, count)["a"].sum()) for count in (30, 29, 24, 23, 18, 1)]
    assert counts == [24, 24, 18, 18, 12, 12]


@pytest.mark.parametrize("text", ("", "2", "4:4", "5:4", "0:4", "2:4:8", "a:4", "-1:4", "2 : 4", "²:4"))
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write N:M with N below M"):
        Pattern.parse(text)


def test_a_pattern_is_the_budget() -> None:
    budget = WeightBudget.parse(None, None, RatioBase.WHOLE, TWO_OF_FOUR)
    assert (budget.ratio, budget.base) == (2, RatioBase.PRUNABLE)
    for option, given in (("--ratio", ("2", None)), ("--keep", (None, "0.5"))):
        with pytest.raises(
            UsageError, match=f"`--pattern 2:4` says how many weights stay: leave out `{option}`"
        ):
            WeightBudget.parse(*given, RatioBase.WHOLE, TWO_OF_FOUR)


@pytest.mark.parametrize(
    ("settings", "option"),
    (
        ({"scope": Scope.LAYER}, "--scope layer"),
        ({"rule": MaskRule.TWO_SIDED}, "--mask-rule two-sided"),
        ({"min_keep": 3}, "--min-keep"),
        ({"keep_layer": {"a": 0.5}}, "--keep-layer"),
    ),
)
def test_what_contradicts_a_pattern_is_refused(settings: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError, match=f"among every 4 weights: leave out `{option}`"):
        Selection(pattern=TWO_OF_FOUR, **settings)


def test_weights_are_masked_by_a_pattern() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
    ).eval()
    budget = WeightBudget.parse(None, None, pattern=TWO_OF_FOUR)
    lender = lend(model, torch.zeros(1, 3, 6, 6), "magnitude")
    masking = choose_masks(lender, budget, Selection(pattern=TWO_OF_FOUR))
    assert masking.kept == masking.count == 8 * 27 + (8 * 4 * 9 + 16 * 5) // 2
    assert masking.masks["0.weight"].all()
    for name in ("2.weight", "5.weight"):
        assert torch.equal(masking.masks[name], twin(model.get_parameter(name).detach().abs(), 2, 4, 1))
    assert "leaves `0.weight` dense" in masking.about.notes[-1]
    again = choose_masks(
        lend(with_masks(model, masking.masks), torch.zeros(1, 3, 6, 6), "magnitude", masks=masking.masks),
        budget,
        Selection(pattern=TWO_OF_FOUR),
    )
    assert all(torch.equal(mask, masking.masks[name]) for name, mask in again.masks.items())


def linears() -> tuple[nn.Module, dict[str, Tensor]]:
    """Return linear layers and their masks: the last has no pattern, the convolution is none."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 32), nn.Linear(32, 20), nn.Linear(20, 5), nn.Unflatten(1, (5, 1)), nn.Conv1d(5, 4, 1)
    )
    names = ("0.weight", "1.weight", "4.weight")
    masks = TWO_OF_FOUR.masks({name: model.get_parameter(name).detach() for name in names})
    return model, {**masks, "2.weight": torch.ones(5, 20, dtype=torch.bool)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_without_a_gpu_it_says_so() -> None:
    assert check_semi_structured(*linears()) == "kernels not tried: no CUDA GPU"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_kernels_take_the_pattern() -> None:
    model, masks = linears()
    found = check_semi_structured(model, masks)
    assert found.startswith("1 of 2 linear layers accepted; `1.weight` was not: ")


def fake_gpu(monkeypatch: pytest.MonkeyPatch, convert: Any, capability: tuple[int, int] = (8, 0)) -> None:
    """Pretend that there is a GPU, and that torch converts weights like this."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Made-up GPU")
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", convert)


def as_torch_does(weight: Tensor) -> Tensor:
    assert weight.dtype == torch.float16
    assert not weight.unflatten(1, (-1, 4)).ne(0).sum(2).gt(2).any()
    if weight.shape[0] % 32 or weight.shape[1] % 64:
        raise RuntimeError(f"Error original_tensor.shape {weight.shape} is not supported!\nmore")
    return weight


def test_what_kernels_say_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks = linears()
    fake_gpu(monkeypatch, as_torch_does)
    assert check_semi_structured(model, masks, "cpu") == (
        "1 of 2 linear layers accepted; `1.weight` was not: "
        "Error original_tensor.shape torch.Size([20, 32]) is not supported!"
    )
    assert check_semi_structured(model, {"0.weight": masks["0.weight"]}, "cpu") == (
        "1 of 1 linear layers accepted"
    )
    assert "no linear layer follows 2:4" in check_semi_structured(
        model, {"2.weight": masks["2.weight"]}, "cpu"
    )
    fake_gpu(monkeypatch, lambda weight: weight * 1.5)
    assert "0 of 2 linear layers accepted" in check_semi_structured(model, masks, "cpu")
    assert "off by 5.0e-01, and 1 more" in check_semi_structured(model, masks, "cpu")
    fake_gpu(monkeypatch, as_torch_does, (7, 5))
    assert check_semi_structured(model, masks, "cpu") == (
        "kernels not tried: Made-up GPU has compute capability 7.5, and 8.0 is needed"
    )
