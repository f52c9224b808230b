"""Checkpoints of known architectures, whole, changed and hostile -> what they are taken for."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch
import torchvision

from prunecli.architectures import Match, recognise
from prunecli.architectures.catalogue import PATH, Catalogue, read_catalogue
from prunecli.architectures.fingerprint import Argument, Fingerprint, Place, Shapes, take_fingerprint

SMALL = {"conv.weight": (8, 3, 3, 3), "fc.weight": (10, 8), "fc.bias": (10,)}
VERSIONS = dict(text.split(" ") for text in read_catalogue().versions.split(", "))
"""Of the libraries that the catalogue was made from."""
CLASSES = Argument("num_classes", 10, (Place("fc.bias", 0), Place("fc.weight", 0)))


def shapes_of(name: str, **args: object) -> Shapes:
    """Return the shapes of a model of torchvision."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, **args)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def catalogue(*known: Fingerprint) -> Catalogue:
    """Return a catalogue of these."""
    return Catalogue("\n".join(("# fingerprints of nothing", *(each.to_line() for each in known))))


def small(factory: str) -> Fingerprint:
    """Return the fingerprint of a small network."""
    return take_fingerprint(factory, SMALL, [CLASSES])


def test_a_network_of_torchvision_is_recognised() -> None:
    found = recognise(shapes_of("resnet18"))
    assert found.choice == Match("torchvision:resnet18")
    assert found.matches[0] == found.choice
    assert found.choice.options == "--spec torchvision:resnet18"


def test_arguments_are_inferred() -> None:
    found = recognise(shapes_of("resnet18", num_classes=7)).choice
    assert found == Match("torchvision:resnet18", {"num_classes": 7})
    assert found.options == "--spec torchvision:resnet18 --spec-arg num_classes=7"
    assert found.text == "torchvision:resnet18 with num_classes=7"


def test_boxes_of_a_detector_imply_its_classes() -> None:
    shapes = shapes_of("retinanet_resnet50_fpn", num_classes=5, weights_backbone=None)
    assert recognise(shapes).choice == Match("torchvision:retinanet_resnet50_fpn", {"num_classes": 5})


def test_auxiliary_heads_are_arguments() -> None:
    shapes = shapes_of("fcn_resnet50", aux_loss=True, weights_backbone=None)
    assert recognise(shapes).choice == Match("torchvision:fcn_resnet50", {"aux_loss": True})


def test_a_transformer_for_other_pictures_is_recognised() -> None:
    found = recognise(shapes_of("vit_b_16", image_size=384)).choice
    assert found == Match("torchvision:vit_b_16", {"image_size": 384})


def test_other_channels_make_it_a_network_of_timm() -> None:
    shapes = {**shapes_of("resnet18"), "conv1.weight": (64, 1, 7, 7)}
    found = recognise(shapes)
    assert Match("timm:resnet18", {"in_chans": 1}) in found.matches
    assert all(match.factory.startswith("timm:") for match in found.matches)


def test_prefixes_and_wrappers_are_cut_and_counters_may_be_missing() -> None:
    shapes = {
        f"module.{name.replace('layer1.', 'layer1._orig_mod.')}": shape
        for name, shape in shapes_of("resnet18").items()
        if not name.endswith("num_batches_tracked")
    }
    assert recognise(shapes).choice == Match("torchvision:resnet18", prefix="module.")


def test_twins_are_all_named_and_none_is_chosen() -> None:
    found = recognise(SMALL, catalogue(small("timm:b"), small("timm:a")))
    assert [match.factory for match in found.matches] == ["timm:a", "timm:b"]
    assert found.choice is None


def test_torchvision_is_preferred() -> None:
    found = recognise(SMALL, catalogue(small("timm:a"), small("torchvision:b")))
    assert found.choice == Match("torchvision:b")
    assert len(found.matches) == 2


def test_a_replaced_classifier_is_seen() -> None:
    shapes = {"conv.weight": SMALL["conv.weight"], "fc.0.weight": (5, 8), "fc.2.weight": (3, 5)}
    (near,) = recognise(shapes, catalogue(small("timm:a"))).near
    assert (near.factories, near.difference) == (("timm:a",), "all but `fc`, which is another")


def test_a_missing_classifier_is_seen() -> None:
    (near,) = recognise({"conv.weight": (8, 3, 3, 3)}, catalogue(small("timm:a"))).near
    assert near.difference == "all but the classifier, which is not there"


def test_a_backbone_inside_a_larger_network_is_seen() -> None:
    shapes = {f"backbone.{name}": shape for name, shape in SMALL.items()} | {"neck.weight": (3, 3)}
    (near,) = recognise(shapes, catalogue(small("timm:a"))).near
    assert near.difference == "the tensors under `backbone` (see `--key`)"


@pytest.mark.parametrize(
    "change",
    ({"conv.weight": (9, 3, 3, 3)}, {"fc.bias": (11,)}, {"fc.bias": ()}, {"fc.weight": (10, 8, 1)}),
    ids=repr,
)
def test_other_shapes_are_near_at_most(change: dict[str, tuple[int, ...]]) -> None:
    found = recognise(SMALL | change, catalogue(small("timm:a")))
    assert not found.matches
    assert found.near[0].difference == "the same names, but other shapes"


@pytest.mark.parametrize("shapes", ({}, {"a": ()}, {"\ud800.\x1b[31m": (0,)}), ids=repr)
def test_strange_tensors_look_like_nothing(shapes: Shapes) -> None:
    assert recognise(shapes) == recognise({})
    assert not recognise(shapes).matches


def test_the_catalogue_is_complete_small_and_without_repetition() -> None:
    text = PATH.read_text(encoding="utf-8")
    _, *lines = text.splitlines()
    known = [Fingerprint.from_line(line) for line in lines]
    assert len({(each.factory, *each.args.items()) for each in known}) == len(known)
    assert len(text) < 400_000
    assert set(VERSIONS) == {"torchvision", "timm"}
    assert len([each for each in known if each.factory.startswith("timm:")]) > 1_000


def test_every_network_of_torchvision_is_known() -> None:
    if VERSIONS["torchvision"] != torchvision.__version__.partition("+")[0]:
        pytest.skip(f"the catalogue is of torchvision {VERSIONS['torchvision']}")
    there = {name for name in torchvision.models.list_models() if not name.startswith("quantized_")}
    lines = PATH.read_text(encoding="utf-8").splitlines()[1:]
    assert there <= {Fingerprint.from_line(line).factory.removeprefix("torchvision:") for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("library", ("torchvision", "timm"))
def test_the_catalogue_is_true_of_what_is_installed(library: str) -> None:
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    if version(library).partition("+")[0] != VERSIONS[library]:
        pytest.skip(f"the catalogue is of {library} {VERSIONS[library]}")
    from benchmarks.catalogue import measure

    lines = [line for line in PATH.read_text(encoding="utf-8").splitlines() if line.startswith(f"{library}:")]
    for line in lines[:: len(lines) // 12]:
        known = Fingerprint.from_line(line)
        assert measure(known.factory, known.args) == known


def test_names_with_newlines_are_not_several_names() -> None:
    known = catalogue(small("torchvision:net"))
    assert recognise({"\n".join(sorted(SMALL)): (2, 2)}, known).matches == ()
