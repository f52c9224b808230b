"""`prune --granularity weight`, before and after training, as a user runs it from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.errors import BudgetError, NotPrunableError, ProofError, UsageError
from prunecli.pipeline import finishing, masking
from prunecli.pipeline.finetune import finetune, train_new
from prunecli.pipeline.listener import Silent
from prunecli.pipeline.opening import open_model
from prunecli.pipeline.prune import Pruned, prune
from prunecli.pipeline.score import score
from prunecli.pipeline.settings import (
    Budget,
    Choices,
    Decision,
    Files,
    Importance,
    Machine,
    Recovery,
    Samples,
    Source,
    Start,
    Steps,
    Study,
    Weights,
)
from prunecli.recipe import Recipe

SAMPLES = Path(__file__).parents[2] / "sample_models"
RESNET = SAMPLES / "digits_resnet" / "model.safetensors"
SPEC = RESNET.with_name("model.toml")
NEW = {"start": Start(at_init=True), "source": Source(spec=str(SPEC))}


def choices(out: Path, method: str = "magnitude", **changes: object) -> Choices:
    """Return the choices of a quick run: one weight of eight stays."""
    quick = {
        "importance": Importance(method=(method,), granularity="weight"),
        "budget": Budget(ratio="8"),
        "machine": Machine("cpu", threads=1),
        "files": Files(str(out), onnx=False),
    }
    return Choices(**{**quick, **changes})  # type: ignore[arg-type]


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of all layers but the classifier."""
    weights = {name: each.detach() for name, each in model.named_parameters() if each.dim() > 1}
    return {name: each for name, each in weights.items() if name != "classifier.weight"}


def kept(weights: Mapping[str, Tensor]) -> int:
    return sum(int(each.count_nonzero()) for each in weights.values())


def load(pruned: Pruned) -> nn.Module:
    return prunecli.load(pruned.files[0], spec=SPEC)


def test_exactly_as_many_stay_and_they_are_the_largest(tmp_path: Path) -> None:
    pruned = prune(str(RESNET), choices(tmp_path))
    dense = prunecli.load_model(prunecli.read_spec(SPEC), RESNET)
    before, after = prunable(dense), prunable(load(pruned))
    parameters = sum(each.numel() for each in dense.parameters())
    left = kept(after)
    others = parameters - sum(each.numel() for each in before.values())
    assert left == round(parameters / 8) - others
    flat = torch.cat([each.flatten().abs() for each in before.values()])
    limit = flat.topk(left).values[-1]
    for name, weight in after.items():
        assert torch.equal(weight, before[name] * (before[name].abs() >= limit))
    assert pruned.plan is None
    assert pruned.report.masks is not None
    assert pruned.report.masks.effective_ratio == pytest.approx(8, abs=8 * 8 / parameters)
    assert pruned.report.totals.params.ratio == 1


def test_onnx_holds_the_zeros(tmp_path: Path) -> None:
    pruned = prune(str(RESNET), choices(tmp_path, files=Files(str(tmp_path))))
    graph = onnx.load(str(pruned.files[1])).graph
    arrays = [onnx.numpy_helper.to_array(each) for each in graph.initializer]
    weights = [each for each in arrays if each.ndim == 4]
    assert sum(int(np.count_nonzero(each)) for each in weights) == kept(prunable(pruned.model))


@pytest.mark.parametrize("method", ("snip", "synflow"))
def test_a_new_model_is_masked_and_trained_with_its_zeros(method: str, tmp_path: Path) -> None:
    arguments = ("steps=5",) if method == "synflow" else ()
    chosen = choices(
        tmp_path, importance=Importance((method,), arguments, granularity="weight"), **NEW,
    )  # fmt: skip
    pruned = prune(None, chosen)
    assert pruned.files[0].name == "model.pruned.safetensors"
    trained = finetune(
        str(pruned.files[0]),
        Choices(
            source=Source(spec=str(SPEC)),
            samples=Samples(batch_size=256),
            machine=Machine("cpu", threads=1),
            files=Files(str(tmp_path), onnx=False),
            recipe=Recipe(epochs=1, weight_decay=1e-3),
        ),
    )
    before, after = prunable(pruned.model), prunable(trained.model)
    assert kept(after) <= kept(before)
    for name, weight in after.items():
        assert not weight[before[name] == 0].any()
        assert not torch.equal(weight, before[name])
    assert trained.report.masks is not None
    assert trained.report.masks.kept == kept(before)


def test_train_masks_before_it_trains(tmp_path: Path) -> None:
    recipe = {"recipe": Recipe(epochs=1), "samples": Samples(batch_size=256)}
    trained = train_new(choices(tmp_path, "gradient", source=NEW["source"], start=Start(True), **recipe))
    (tmp_path / "apart").mkdir()
    masked = prune(None, choices(tmp_path / "apart", "gradient", samples=recipe["samples"], **NEW))
    for name, weight in prunable(masked.model).items():
        assert not prunable(trained.model)[name][weight == 0].any()
    assert trained.report.masks == masked.report.masks
    assert trained.report.settings["method"] == "gradient"


def test_what_is_masked_never_comes_back(tmp_path: Path) -> None:
    first = prune(str(RESNET), choices(tmp_path, "random"))
    again = choices(tmp_path, "magnitude", budget=Budget(ratio="16"), source=Source(spec=str(SPEC)))
    second = prune(str(first.files[0]), again)
    for name, weight in prunable(second.model).items():
        assert not weight[prunable(first.model)[name] == 0].any()
    assert kept(prunable(second.model)) < kept(prunable(first.model))


def test_empty_units_leave_and_nothing_changes_where_no_constant_goes(tmp_path: Path) -> None:
    dense = prunecli.load_model(prunecli.read_spec(SPEC), RESNET)
    for module in dense.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that an empty unit puts out zero
            nn.init.zeros_(module.bias)
            module.running_mean.zero_()  # type: ignore[union-attr, operator]
    torch.save(dense.state_dict(), tmp_path / "plain.pt")
    source = Source(spec=str(SPEC))
    masked = prune(str(tmp_path / "plain.pt"), choices(tmp_path, budget=Budget(ratio="20"), source=source))
    chosen = choices(
        tmp_path,
        budget=Budget(),
        weights=Weights(collapse_to_units=True),
        source=Source(spec=str(SPEC)),
    )
    smaller = prune(str(masked.files[0]), chosen)
    assert smaller.report.totals.params.ratio < 1
    assert [check.name for check in smaller.report.parity] == ["structure", "numbers"]
    assert smaller.plan is not None
    assert smaller.plan.budget == "collapse"
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loaded = load(smaller)
    assert torch.equal(loaded(images), smaller.model(images))
    assert not [each for each in smaller.report.warnings if each.kind == "constants"]
    assert torch.allclose(loaded(images), masked.model.eval()(images), atol=1e-5)


def test_a_pattern_is_a_budget_and_says_what_kernels_take(tmp_path: Path) -> None:
    pruned = prune(str(RESNET), choices(tmp_path, budget=Budget(), weights=Weights(pattern="2:4")))
    masks = pruned.report.masks
    assert masks is not None
    assert masks.pattern == "2:4"
    assert masks.semi_structured is not None
    if not torch.cuda.is_available():
        assert "no CUDA GPU" in masks.semi_structured
    weight = prunable(pruned.model)["stages.0.0.conv1.weight"]
    assert (weight.unflatten(1, (-1, 4)).count_nonzero(2) == 2).all()


def test_a_collapse_is_a_warning_or_an_error(tmp_path: Path) -> None:
    most = Budget(ratio="80")
    pruned = prune(str(RESNET), choices(tmp_path, budget=most))
    assert pruned.report.masks is not None
    assert pruned.report.masks.collapsed
    assert "collapse" in [each.kind for each in pruned.report.warnings]
    with pytest.raises(NotPrunableError, match="`--no-collapse`: no weight would be left in `stages"):
        prune(str(RESNET), choices(tmp_path / "none", budget=most, weights=Weights(no_collapse=True)))
    assert not (tmp_path / "none").exists()


def test_snip_starts_from_xavier_unless_told_otherwise(tmp_path: Path) -> None:
    def weights(method: str, init: str) -> Tensor:
        out = tmp_path / f"{method}-{init}"
        source = {"start": Start(True, init), "source": NEW["source"]}
        model = prune(None, choices(out, method, budget=Budget(keep="1.0"), **source)).model
        return prunable(model)["stages.0.0.conv1.weight"]

    own, xavier = weights("magnitude", "auto"), weights("snip", "auto")
    assert torch.equal(weights("snip", "keep"), own)
    assert torch.equal(weights("magnitude", "xavier"), xavier)
    assert xavier.std() == pytest.approx((2 / (16 * 9 + 16 * 9)) ** 0.5, rel=0.1)


def test_xavier_reaches_weights_that_are_computed() -> None:
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(40, 50))
    plain, model = nn.Sequential(nn.Linear(40, 50)), nn.Sequential(normed)
    before = normed.weight.detach().clone()
    drawn, expected = (masking._xavier(each, seed=3)[0].weight for each in (model, plain))  # type: ignore[index]
    assert torch.allclose(drawn, expected)
    assert torch.equal(normed.weight, before)


def test_gradients_of_a_new_model_use_the_statistics_of_the_batch(tmp_path: Path) -> None:
    new = prune(None, choices(tmp_path, "gradient", **NEW)).report
    trained = prune(str(RESNET), choices(tmp_path / "trained", "gradient")).report
    assert (new.settings["score_bn"], trained.settings["score_bn"]) == ("train", "eval")
    assert new.settings["samples"] == 128


def test_scores_of_weights(tmp_path: Path) -> None:
    importance = Importance(("magnitude", "gradient"), granularity="weight")
    out = str(tmp_path / "scores.safetensors")
    scored = score(str(RESNET), importance=importance, study=Study("magnitude"), out=out)
    assert [path.name for path in scored.files] == [
        "scores.magnitude.safetensors",
        "scores.gradient.safetensors",
    ]
    assert scored.agreements[0].units == 173_200
    with pytest.raises(Exception, match="holds scores of weights, and units are to go"):
        prune(
            str(RESNET),
            Choices(budget=Budget(keep="0.5"), decision=Decision(scores=str(scored.files[0]))),
        )


def test_arguments_are_for_the_method_that_has_them() -> None:
    importance = Importance(("synflow",), ("steps=2",), granularity="weight")
    scored = score(str(RESNET), importance=importance, study=Study("magnitude"))
    assert scored.scores["synflow"].about.arguments == {"steps": 2}
    assert scored.agreements[0].against == "magnitude"


def test_a_wrong_mask_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
        name = next(iter(masks))
        return honest(model, {**masks, name: torch.ones_like(masks[name])})

    honest = finishing.with_masks
    monkeypatch.setattr("prunecli.pipeline.masking.with_masks", careless)
    with pytest.raises(ProofError, match="`conv1.weight` of the masked model is not that of the dense one"):
        prune(str(RESNET), choices(tmp_path))
    assert not list(tmp_path.iterdir())


BOTH = "are two budgets; give one of them"
REFUSED = {
    "target": ({"budget": Budget(target="macs=0.5")}, "`--target` is a budget of units"),
    "two budgets": ({"budget": Budget(ratio="8", keep="0.5")}, BOTH),
    "no budget": ({"budget": Budget()}, "Say how many weights may stay"),
    "ratio": ({"budget": Budget(ratio="0.5")}, "`--ratio 0.5`: a compression ratio is a number from 1 on"),
    "keep": ({"budget": Budget(keep="1.5")}, "`--keep 1.5`: the share of weights to keep is above 0"),
    "steps": ({"steps": Steps(steps=3)}, "`--steps` and `--granularity weight`"),
    "plan": ({"decision": Decision(plan="plan.json")}, "`--plan` and `--granularity weight`"),
    "reconstruct": ({"recovery": Recovery(reconstruct=True)}, "`--reconstruct` and `--granularity weight`"),
    "two methods": ({"importance": Importance(("snip", "grasp"), granularity="weight")}, "`prunecli sweep`"),
    "unit method": ({"importance": Importance(("taylor-so",), granularity="weight")}, "scores units, not"),
    "samples": (
        {"samples": Samples(samples=5), "weights": Weights(score_batches=2)},
        "`--score-batches` and `--samples` both",
    ),
    "pattern and ratio": ({"weights": Weights(pattern="2:4")}, "`--pattern 2:4` says how many weights stay"),
    "start": ({"start": Start(at_init=True)}, "`--at-init` starts from a new model: leave out"),
    "init": ({"start": Start(init="xavier")}, "`--init xavier` is for new models"),
    "idle for methods without data": (
        {"given": frozenset({"score_bn"})},
        "`--score-bn` does nothing with `--method magnitude`, which looks at no data",
    ),
    "idle": ({"given": frozenset({"round_to"})}, "`--round-to` does nothing with `--granularity weight`"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_contradictions_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        prune(str(RESNET), choices(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_options_of_weights_do_nothing_for_units(tmp_path: Path) -> None:
    units = replace(choices(tmp_path), importance=Importance(), budget=Budget(keep="0.5"))
    for option in ("ratio", "pattern", "score_batches", "collapse_to_units"):
        with pytest.raises(UsageError, match=f"{option.replace('_', '-')}` does nothing without"):
            prune(str(RESNET), replace(units, given=frozenset({option})))


def test_a_ratio_out_of_reach_says_what_is_within(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"of 1000 leaves nothing .* Below 98\.\d+ it can be met"):
        prune(str(RESNET), choices(tmp_path, budget=Budget(ratio="1000")))
    one_left = choices(tmp_path, budget=Budget(ratio="173200"), weights=Weights(ratio_base="prunable"))
    assert kept(prunable(prune(str(RESNET), one_left).model)) == 1


class Listening(Silent):
    """Remembers what it is warned of."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def warn(self, text: str) -> None:
        self.heard.append(text)


def test_a_loss_that_is_not_finite_is_said_and_left_out(tmp_path: Path) -> None:
    # The first layer is normalised by its own spread: where nothing is left of it, that is 0 / 0.
    code = (
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.one, self.two = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)\n"
        "    def forward(self, x):\n"
        "        weight = self.one.weight / self.one.weight.std(1, keepdim=True)\n"
        "        return self.two(torch.nn.functional.linear(x, weight).relu())\n"
        "data = lambda: torch.utils.data.TensorDataset(torch.randn(9, 6), torch.arange(9) % 3)\n"
    )
    (tmp_path / "net.py").write_text(code)
    text = '[model]\nfactory = "net.py:Net"\n[input]\nshape = [6]\n[data]\ntest = "net.py:data"\n'
    (tmp_path / "net.toml").write_text(text)
    few, source = Budget(ratio="24"), Source(spec=str(tmp_path / "net.toml"))
    base, listener = Weights(ratio_base="prunable"), Listening()
    pruned = prune(
        None, choices(tmp_path, budget=few, weights=base, source=source, start=Start(True)), listener
    )
    assert pruned.report.accuracy_after is not None
    assert pruned.report.accuracy_after.loss is None
    assert [each for each in listener.heard if "accuracy after: the loss is nan" in each]


def test_neither_checkpoint_nor_new_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`--spec net.toml`, or"):
        prune(None, choices(tmp_path, start=Start(at_init=True)))
    with pytest.raises(UsageError, match="Name a checkpoint, or say `--at-init"):
        prune(None, choices(tmp_path, source=NEW["source"]))


def test_training_refuses_two_ways_to_prune(tmp_path: Path) -> None:
    from prunecli.pipeline.settings import Directed

    new = choices(tmp_path, source=NEW["source"], directed=Directed("contribution"))
    with pytest.raises(UsageError, match="masks weights before training, `--schedule contribution` prunes"):
        train_new(new)
    later = choices(tmp_path, source=NEW["source"], weights=Weights(collapse_to_units=True))
    with pytest.raises(UsageError, match="`--collapse-to-units` comes after training"):
        train_new(later)


def test_masks_of_layers_left_alone_now_are_kept(tmp_path: Path) -> None:
    first = prune(str(RESNET), choices(tmp_path, weights=Weights(prune_classifier=True)))
    again = choices(
        tmp_path,
        budget=Budget(ratio="16", ignore=("conv1",)),
        source=Source(spec=str(SPEC)),
    )
    second = prune(str(first.files[0]), again)
    record = open_model(str(second.files[0]), again.source, Samples(), Silent()).masks
    assert record is not None
    for name in ("conv1.weight", "classifier.weight"):
        assert torch.equal(record[name], dict(first.model.named_parameters())[name] != 0)
