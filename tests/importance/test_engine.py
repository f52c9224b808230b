"""What the engine promises beyond the laws: one pass, progress, and errors that say where."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunecli.errors import DataError, ScoreError, UsageError
from prunecli.graph.structure import Group
from prunecli.importance import score
from tests.structures import conv_norm, layer, member, mlp, reader, structure_of


def test_several_methods_share_one_pass() -> None:
    case = conv_norm()
    calls = []
    case.model.register_forward_hook(lambda *_: calls.append(1))
    names = ["taylor-fo-weight", "magnitude", "taylor-fo"]
    batches = [case.batch(), case.batch()]
    together = score(case.model, case.structure, batches, cross_entropy, names, micro_batch=6)
    assert (list(together), len(calls)) == (names, 2)
    for name in names:
        alone = score(case.model, case.structure, batches, cross_entropy, [name], micro_batch=6)
        assert alone[name].to_bytes() == together[name].to_bytes()


def test_keyword_inputs() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp().model

        def forward(self, *, x: Tensor) -> Tensor:
            return self.body(x)

    case, named = mlp(), Named()
    (inputs,), targets = case.batch()
    group = Group("body.0", 6, (*layer("body.0", 6, gated=True), *reader("body.2", 6)))
    found = score(named, structure_of(named, [group]), [({"x": inputs}, targets)], cross_entropy)
    expected = score(case.model, case.structure, [((inputs,), targets)], cross_entropy)
    assert torch.equal(found["taylor-fo"].by_group["body.0"], expected["taylor-fo"].by_group["0"])


def test_reports_progress() -> None:
    case, seen = mlp(), []
    batches = iter([case.batch(), case.batch()])
    score(
        case.model,
        case.structure,
        batches,
        cross_entropy,
        micro_batch=4,
        batch_count=3,
        progress=lambda *done: seen.append(done),
    )
    assert seen == [("scoring", 1, 3), ("scoring", 2, 3), ("scoring", 3, 3)]


def test_methods_without_data_need_no_batches_and_say_so() -> None:
    case = mlp()
    about = score(case.model, case.structure, methods=["magnitude"])["magnitude"].about
    assert (about.samples, about.batches, about.micro_batch, about.score_bn) == (0, 0, 0, None)


def test_asks_for_data_where_there_is_none() -> None:
    case = mlp()
    with pytest.raises(DataError, match="`taylor-fo` looks at samples; there are none"):
        score(case.model, case.structure)
    with pytest.raises(DataError, match="`taylor-fo` needs labelled samples and a loss; there is no loss"):
        score(case.model, case.structure, [case.batch()])
    with pytest.raises(DataError, match="The sample is empty"):
        score(case.model, case.structure, [], cross_entropy)


def test_refuses_arguments_that_no_method_takes() -> None:
    case = mlp()
    with pytest.raises(UsageError, match="No argument `momentum` in `taylor-fo`"):
        score(case.model, case.structure, [case.batch()], cross_entropy, method_args={"momentum": "0.9"})


def test_refuses_a_model_without_groups() -> None:
    case = mlp()
    with pytest.raises(ScoreError, match="nothing to score"):
        score(case.model, structure_of(case.model, []), methods=["random"])


def test_refuses_the_structure_of_another_network() -> None:
    case = mlp()
    with pytest.raises(ScoreError, match=r"`0.weight` is \[6, 4\] in the structure and \[5, 2, 3, 3\] in"):
        score(conv_norm().model, case.structure, methods=["magnitude"])


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    (
        (lambda output, targets: output.sum() * torch.nan, "Micro-batch 0 .*the loss is nan. Check the norm"),
        (lambda output, targets: output.sum(1), r"one number, the mean over the batch; found shape \[6\]"),
        (lambda output, targets: 3.0, "the mean over the batch; found float"),
        (lambda output, targets: output.detach().sum(), "the loss does not depend on any parameter"),
        (lambda output, targets: output["logits"], "the model or the loss failed: "),
    ),
)
def test_says_what_is_wrong_with_the_loss(loss_fn: object, message: str) -> None:
    case = mlp()
    with pytest.raises(ScoreError, match=message):
        score(case.model, case.structure, [case.batch()], loss_fn)


@pytest.mark.parametrize("method", ("magnitude", "taylor-fo-weight"))
def test_refuses_scores_that_are_not_finite(method: str) -> None:
    case = mlp()
    with torch.no_grad():
        case.model[2].weight[1] = torch.inf
    with pytest.raises(ScoreError, match="1 of 5 units of `2` a score that is not finite|loss is nan"):
        score(case.model, case.structure, [case.batch()], cross_entropy, [method])


class Branches(nn.Module):
    """A layer that forward skips, or reads without a gradient."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.used, self.aside, self.head = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        features = self.used(x)
        if self.hidden:
            features = features + self.aside(x).detach()
        return self.head(features)


def test_groups_that_forward_skips_score_zero_and_are_noted() -> None:
    model = Branches(hidden=False)
    groups = [Group(name, 3, tuple(layer(name, 3, gated=True))) for name in ("used", "aside")]
    batch = (torch.ones(2, 4), torch.tensor([0, 1]))
    found = score(model, structure_of(model, groups), [batch], cross_entropy)["taylor-fo"]
    assert found.by_group["aside"].tolist() == [0, 0, 0]
    assert (found.by_group["used"] > 0).any()
    assert found.about.notes == (
        "Forward does not use `aside`: the units score 0 and are the first to go.",
        "1 of 2 groups score 0 throughout: `aside`; ranked by position.",
    )


def test_groups_of_zeros_are_noted() -> None:
    case = mlp()
    with torch.no_grad():
        case.model[4].weight.zero_()
    found = score(case.model, case.structure, [case.batch()], cross_entropy, ["taylor-fo", "magnitude"])
    assert found["magnitude"].about.notes == ()
    assert found["taylor-fo"].about.notes == (
        "2 of 2 groups score 0 throughout: `0`, `2`; ranked by position.",
    )


def test_groups_that_are_hidden_from_the_gradient_are_refused() -> None:
    model = Branches(hidden=True)
    groups = [Group(name, 3, tuple(layer(name, 3, gated=True))) for name in ("used", "aside")]
    with pytest.raises(
        ScoreError, match="gradient of the loss does not reach `aside`, though forward reads it"
    ):
        score(model, structure_of(model, groups), [(torch.ones(2, 4), torch.tensor([0, 1]))], cross_entropy)


def test_buffers_are_no_part_of_a_score() -> None:
    model = nn.BatchNorm1d(3)
    statistic = member("running_mean", 0, "weight", "producer", 3, gated=True)
    with pytest.raises(ScoreError, match="`magnitude` cannot score `stats`"):
        score(model, structure_of(model, [Group("stats", 3, (statistic,))]), methods=["magnitude"])


def test_recurrent_layers_keep_their_gradients() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.cell, self.head = (
                nn.Linear(4, 3),
                nn.LSTM(3, 2, batch_first=True),
                nn.Linear(2, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(self.embed(x))[0][:, -1])

    torch.manual_seed(0)
    model = Recurrent()
    consumer = member("cell.weight_ih_l0", 1, "weight", "consumer", 3)
    group = Group("embed", 3, (*layer("embed", 3, gated=False), consumer))
    gated = Group("embed", 3, tuple(layer("embed", 3, gated=True)))
    batch = (torch.randn(5, 6, 4), torch.tensor([0, 1, 1, 0, 1]))
    read, made = (
        score(model, structure_of(model, [each]), [batch], cross_entropy)["taylor-fo"].by_group["embed"]
        for each in (group, gated)
    )
    assert (made > 0).all()
    torch.testing.assert_close(read, made, rtol=1e-4, atol=0)
