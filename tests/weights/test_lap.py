"""`lap` against the distortion that it stands for, and a slow twin written from the formula."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunecli.graph.groups import find_groups
from prunecli.weights import Lender, prunable_weights, score_weights
from tests.graph.nets import BY_NAME, Residual
from tests.structures import shuffle


def scores_of(
    model: nn.Module, example: tuple[Tensor, ...], **arguments: object
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the scores of all weights, the classifier's too, and the notes."""
    structure = find_groups(model, example)
    names = prunable_weights(model, structure, with_classifier=True)
    lender = Lender(model, structure, (example, {}), names, "lap", {"bn": True, **arguments})
    scores, about = score_weights(lender)
    return dict(scores), about.notes


def shuffled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return it in float64 and eval mode, with parameters and statistics that differ."""
    torch.manual_seed(seed)
    shuffle(model.double().eval())
    return model


def double(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(*shape, dtype=torch.float64)


def scale(norm: nn.Module) -> Tensor:
    """Return d of a batch normalisation."""
    return norm.weight.detach().abs() / (norm.running_var + 1e-10).sqrt()  # type: ignore[operator]


def distortion(before: Tensor, weight: Tensor, behind: Tensor) -> Tensor:
    """Return ||behind (w e_k e_j^T) before||_F for each weight."""
    found = torch.zeros_like(weight)
    for k in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            only = torch.zeros_like(weight)
            only[k, j] = weight[k, j]
            found[k, j] = torch.linalg.matrix_norm(behind @ only @ before)
    return found


def weight_of(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_it_is_the_distortion_of_three_linear_layers() -> None:
    net = shuffled(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)))
    one, two, three = (weight_of(layer) for layer in net)
    scores, notes = scores_of(net, (double(1, 4),))
    close(scores["0.weight"], one.abs() * two.norm(dim=0)[:, None])
    close(scores["1.weight"], distortion(one, two, three))
    close(scores["2.weight"], three.abs() * two.norm(dim=1))
    assert notes == ()


def test_normalisations_between_layers_scale() -> None:
    net = shuffled(
        nn.Sequential(
            nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        )
    )
    one, first, _, two, second, three = net
    before, behind = torch.diag(scale(first)) @ weight_of(one), weight_of(three) @ torch.diag(scale(second))
    scores, _ = scores_of(net, (double(2, 4),))
    close(scores["3.weight"], distortion(before, weight_of(two), behind))
    close(
        scores["0.weight"],
        weight_of(one).abs() * (weight_of(two) @ torch.diag(scale(first))).norm(dim=0)[:, None],
    )
    plain, _ = scores_of(net, (double(2, 4),), bn=False)
    close(plain["3.weight"], distortion(weight_of(one), weight_of(two), weight_of(three)))


def test_a_unit_that_a_normalisation_switches_off_is_worth_nothing() -> None:
    net = shuffled(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)))
    net[1].weight.data[1] = 0  # type: ignore[union-attr, index]
    scores, _ = scores_of(net, (double(2, 4),))
    assert (scores["0.weight"] == 0).all(1).tolist() == [False, True, False]
    assert (scores["2.weight"] == 0).all(0).tolist() == [False, True, False]


def test_flattening_repeats_a_factor_and_adds_up_readers() -> None:
    net = shuffled(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(5 * 6, 2))
    )
    one, two, three = (weight_of(net[place]) for place in (0, 2, 4))
    scores, _ = scores_of(net, (double(1, 3, 2, 3),))
    places = torch.eye(6).double()
    # One place at a time: what a 1x1 convolution does is the same everywhere.
    everywhere = distortion(
        one.flatten(1), two.flatten(1), three.reshape(2, 5, 6).transpose(1, 2).reshape(12, 5)
    )
    close(scores["2.weight"], everywhere[:, :, None, None])
    close(scores["4.weight"], distortion(torch.kron(two.flatten(1), places), three, torch.eye(2).double()))


def test_pooling_before_flattening_leaves_fewer_places() -> None:
    net = shuffled(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    )
    one, three = weight_of(net[0]), weight_of(net[3])
    scores, _ = scores_of(net, (double(1, 3, 4, 4),))
    behind = three.reshape(2, 4, 4).norm(dim=(0, 2))
    close(scores["0.weight"], one.abs() * behind[:, None, None, None])
    close(scores["3.weight"], three.abs() * one.flatten(1).norm(dim=1).repeat_interleave(4))


class Around(nn.Module):
    """x + F(x), twice, between a first and a last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 4)
        self.three, self.four = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.two(self.one(x))
        return self.head(self.four(self.three(x)) + x)


def test_an_identity_counts_as_a_layer_of_its_own() -> None:
    net = shuffled(Around())
    scores, _ = scores_of(net, (double(1, 3),))
    eye = torch.eye(4).double()
    stem, one, two, three, four, head = (
        weight_of(getattr(net, name)) for name in ("stem", "one", "two", "three", "four", "head")
    )
    # The next block reads [identity, two] and hands on [identity, three]: block matrices.
    close(scores["one.weight"], distortion(stem, one, two))
    close(scores["two.weight"], distortion(one, two, torch.cat([three, eye])))
    close(scores["three.weight"], distortion(torch.cat([eye, two], 1), three, four))
    close(scores["four.weight"], distortion(three, four, head))
    close(scores["head.weight"], distortion(torch.cat([eye, four], 1), head, torch.eye(2).double()))
    close(scores["stem.weight"], stem.abs() * torch.cat([one, eye]).norm(dim=0)[:, None])


def norms(weight: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Return the squared norms of what reads each input of a convolution, and makes each output: loops."""
    outs, each = weight.shape[:2]
    reads, makes = torch.zeros(each * groups).double(), torch.zeros(outs).double()
    for out in range(outs):
        for place in range(each):
            energy = weight[out, place].square().sum()
            reads[out // (outs // groups) * each + place] += energy
            makes[out] += energy
    return reads, makes


def by_loops(weight: Tensor, before: Tensor, behind: Tensor, groups: int = 1) -> Tensor:
    """Return |w| times the roots of squared norms before its input and behind its output: loops."""
    found = torch.zeros_like(weight)
    for out in range(weight.shape[0]):
        for place in range(weight.shape[1]):
            unit = out // (weight.shape[0] // groups) * weight.shape[1] + place
            found[out, place] = weight[out, place].abs() * (before[unit] * behind[out]).sqrt()
    return found


def test_grouped_and_depthwise_convolutions() -> None:
    layers = (
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 12, 3, groups=12),
        nn.Conv2d(12, 2, 1),
    )  # fmt: skip
    net = shuffled(nn.Sequential(*layers))
    scores, _ = scores_of(net, (double(1, 3, 9, 9),))
    found = [norms(weight_of(layer), layer.groups) for layer in layers]
    for place in (1, 2):
        groups = layers[place].groups
        expected = by_loops(weight_of(layers[place]), found[place - 1][1], found[place + 1][0], groups)
        close(scores[f"{place}.weight"], expected)


def test_transposed_convolutions_have_inputs_first() -> None:
    layers = (nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Conv2d(6, 2, 1))
    net = shuffled(nn.Sequential(*layers))
    scores, _ = scores_of(net, (double(1, 3, 4, 4),))
    weight = weight_of(layers[1])  # [in, out / groups, ...]
    before, behind = norms(weight_of(layers[0]))[1], norms(weight_of(layers[2]))[0]
    expected = torch.zeros_like(weight)
    for unit in range(4):
        for place in range(3):
            out = unit // 2 * 3 + place
            expected[unit, place] = weight[unit, place].abs() * (before[unit] * behind[out]).sqrt()
    close(scores["1.weight"], expected)


def test_a_residual_network_unit_by_unit() -> None:
    net = shuffled(Residual())
    scores, notes = scores_of(net, (double(1, 3, 8, 8),))
    stem, norm, first, second, third, fourth, head = net
    made = {
        name: norms(weight_of(layer))[1] * scale(bn).square()
        for name, layer, bn in (
            ("stem", stem, norm), ("first", first.conv2, first.bn2), ("second", second.conv2, second.bn2),
            ("third", third.conv2, third.bn2), ("project", third.project[0], third.project[1]),
            ("inner", second.conv1, second.bn1),
        )
    }  # fmt: skip
    reads = {block: norms(weight_of(block.conv1))[0] for block in (first, second, third, fourth)}
    behind = lambda block: norms(weight_of(block.conv2))[0] * scale(block.bn1).square()  # noqa: E731
    last = scale(third.bn2).square()
    close(scores["2.conv1.weight"], by_loops(weight_of(first.conv1), made["stem"], behind(first)))
    close(scores["3.conv1.weight"], by_loops(weight_of(second.conv1), 1 + made["first"], behind(second)))
    close(
        scores["3.conv2.weight"],
        by_loops(
            weight_of(second.conv2),
            made["inner"],
            (reads[third] + norms(weight_of(third.project[0]))[0]) * scale(second.bn2).square(),
        ),
    )
    close(
        scores["4.conv2.weight"],
        by_loops(
            weight_of(third.conv2),
            norms(weight_of(third.conv1))[1] * scale(third.bn1).square(),
            (reads[fourth] + 1) * last,
        ),
    )
    close(
        scores["5.conv1.weight"],
        by_loops(weight_of(fourth.conv1), made["third"] + made["project"], behind(fourth)),
    )
    assert notes == ()


def test_the_chain_takes_modules_in_their_order() -> None:
    net = shuffled(Residual())
    scores, notes = scores_of(net, (double(1, 3, 8, 8),), graph="chain", bn=False)
    first, second = net[2], net[3]
    before, behind = norms(weight_of(first.conv2))[1], norms(weight_of(second.conv2))[0]
    close(scores["3.conv1.weight"], by_loops(weight_of(second.conv1), before, behind))
    scaled, _ = scores_of(net, (double(1, 3, 8, 8),), graph="chain")
    before, behind = before * scale(first.bn2).square(), behind * scale(second.bn1).square()
    close(scaled["3.conv1.weight"], by_loops(weight_of(second.conv1), before, behind))
    # conv2 of the third block has 12 outputs, and its projection, the next module, 8 inputs: no neighbour.
    third = net[4]
    before = norms(weight_of(third.conv1))[1]
    close(scores["4.conv2.weight"], by_loops(weight_of(third.conv2), before, torch.ones(12).double()))
    assert notes == ()


def test_the_chain_is_the_graph_where_there_are_no_branches() -> None:
    net = shuffled(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(24, 5), nn.BatchNorm1d(5), nn.Linear(5, 2),
        )
    )  # fmt: skip
    graph, _ = scores_of(net, (double(1, 3, 8, 8),))
    chain, _ = scores_of(net, (double(1, 3, 8, 8),), graph="chain")
    for name, scores in graph.items():
        close(chain[name], scores)


def test_layers_can_be_normalised() -> None:
    net = shuffled(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)))
    plain, _ = scores_of(net, (double(1, 4),))
    scores, _ = scores_of(net, (double(1, 4),), normalise=True)
    for name, each in scores.items():
        close(each, plain[name] / plain[name].norm())


class Gated(nn.Module):
    """Squeeze and excitation within a residual block, concatenation, a slice of channels, padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.squeeze, self.excite = nn.Linear(4, 3), nn.Linear(3, 4)
        self.after, self.head = nn.Conv2d(3, 5, 1), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.body(x)
        y = y * self.excite(self.squeeze(y.mean((2, 3))).relu()).sigmoid()[:, :, None, None]
        x = x + y
        z = self.after(x[:, 1:])
        return self.head(torch.cat([x, z], 1).mean((2, 3)))


def test_gates_concatenation_and_slices() -> None:
    net = shuffled(Gated())
    scores, notes = scores_of(net, (double(1, 2, 4, 4),))
    reads = {name: norms(weight_of(getattr(net, name)))[0] for name in ("squeeze", "after", "head")}
    makes = {name: norms(weight_of(getattr(net, name)))[1] for name in ("stem", "body", "after")}
    missing = torch.ones(1).double()
    x = 1 + makes["body"]
    behind = reads["head"][:4] + torch.cat([0 * missing, reads["after"]])
    close(scores["body.weight"], by_loops(weight_of(net.body), makes["stem"], behind + reads["squeeze"]))
    close(scores["after.weight"], by_loops(weight_of(net.after), x[1:], reads["head"][4:]))
    before_head = torch.cat([x, makes["after"]])
    close(scores["head.weight"], by_loops(weight_of(net.head), before_head, torch.ones(2).double()))
    # A gate counts 1 for those who make it.
    excite = weight_of(net.excite)
    close(scores["excite.weight"], by_loops(excite, norms(weight_of(net.squeeze))[1], torch.ones(4).double()))
    assert notes == ()


def test_what_cannot_be_followed_counts_1_and_is_told() -> None:
    torch.manual_seed(0)
    case = BY_NAME["Lstm"]
    net = shuffled(case.build())
    scores, notes = scores_of(net, tuple(each.double() for each in case.example(1)))
    close(scores["out.weight"], weight_of(net.out).abs())  # type: ignore[arg-type]
    close(scores["stem.weight"], weight_of(net.stem).abs())  # type: ignore[arg-type]
    assert notes == ("lap: `lstm` hides neighbours of `stem.weight`, `out.weight`; they count as 1",)


def test_weights_that_no_layer_reads_are_told() -> None:
    net = shuffled(BY_NAME["RawParameters"].build())
    _, notes = scores_of(net, (double(1, 6),))
    assert any("no layer reads `w2`, `w3` as they are" in note for note in notes)


class PaddedShortcut(nn.Module):
    """A shortcut without weights: every other place, and channels of zeros behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 5, 1, stride=2), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        short = torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 2))
        return self.head(self.body(x) + short)


def test_an_identity_ends_where_channels_are_padding() -> None:
    net = shuffled(PaddedShortcut())
    scores, _ = scores_of(net, (double(1, 2, 4, 4),))
    made = norms(weight_of(net.body))[1] + torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]).double()
    close(scores["head.weight"], by_loops(weight_of(net.head), made, torch.ones(2).double()))
    behind = 1 + norms(weight_of(net.body))[0]
    close(scores["stem.weight"], by_loops(weight_of(net.stem), torch.ones(2).double(), behind))
