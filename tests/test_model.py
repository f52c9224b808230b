"""Specs -> modules: what factories may be, may do wrong, and may not do when nobody trusts them."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunecli.errors import SpecError
from prunecli.model import build_model, build_on_meta, example_inputs, to_meta
from prunecli.spec import InputSpec, ModelSpec, read_spec

NET = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
from parts import head

@dataclass
class Sizes:
    width: int

class Net(nn.Module):
    def __init__(self, width: int = 4, *, classes: int = 2) -> None:
        super().__init__()
        self.sizes = Sizes(width)
        self.body = nn.Linear(3, width)
        self.head = head(width, classes)

    @classmethod
    def small(cls):
        import late
        return cls(late.WIDTH)

    def forward(self, x):
        return self.head(self.body(x))

def broken(): raise ValueError("no weights here")
def leaves(): raise SystemExit(3)
def nothing(): return None
number = 3
"""

Write = Callable[..., ModelSpec]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return how to write files into a folder, and get a spec of one of them."""

    def spec_of(factory: str, folder: str = "nets", **files: str) -> ModelSpec:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        for name, text in {"net": NET, "parts": PARTS, "late": "WIDTH = 6", **files}.items():
            (place / f"{name}.py").write_text(text)
        return ModelSpec(factory, inputs=(InputSpec((3,)),), base=place)

    return spec_of


PARTS = "from torch import nn\ndef head(width, classes): return nn.Linear(width, classes)\n"


def test_a_class_in_a_file_is_a_factory(write: Write) -> None:
    path = list(sys.path)
    model = build_model(replace(write("net.py:Net"), args={"width": 5, "classes": 3}))
    assert not model.training
    assert model(torch.ones(2, 3)).shape == (2, 3)
    assert sys.path == path
    assert type(model).__module__ in sys.modules
    assert pickle.loads(pickle.dumps(model)).body.out_features == 5


def test_a_dotted_name_and_late_imports_work(write: Write) -> None:
    assert build_model(write("net.py:Net.small")).body.out_features == 6  # type: ignore[union-attr]


def test_building_twice_gives_the_same_model_and_leaves_the_rng_alone(write: Write) -> None:
    spec = write("net.py:Net")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second = build_model(spec), build_model(spec)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_neighbours_of_two_folders_are_not_mixed_up(write: Write) -> None:
    one = build_model(write("net.py:Net", "one"))
    other = build_model(
        write(
            "net.py:Net",
            "other",
            parts="from torch import nn\ndef head(width, classes): return nn.Identity()\n",
        )
    )
    again = build_model(write("net.py:Net", "one"))
    assert [type(model.head).__name__ for model in (one, other, again)] == ["Linear", "Identity", "Linear"]


def test_a_changed_file_is_read_again(write: Write) -> None:
    assert build_model(write("net.py:Net")).body.out_features == 4  # type: ignore[union-attr]
    changed = write("net.py:Net", net=NET.replace("int = 4", "int = 9"))
    assert build_model(changed).body.out_features == 9  # type: ignore[union-attr]


def test_a_module_is_imported_from_the_current_folder(write: Write) -> None:
    spec = write("net:Net")
    assert build_model(spec).body.out_features == 4  # type: ignore[union-attr]


def test_torch_itself_has_factories() -> None:
    spec = read_spec("torch.nn:Linear", spec_args=["in_features=3", "out_features=2"], input=["3"])
    assert isinstance(build_model(spec), nn.Linear)


@pytest.mark.parametrize(
    ("factory", "args", "message"),
    (
        ("absent.py:Net", {}, "there is no file `.*absent.py`.*name the model with `--spec`"),
        ("net.py:Not", {}, "`net.py` has no `Not`"),
        ("net.py:number", {}, "is int, not a function or a class"),
        ("net.py:nothing", {}, "returned NoneType, not an nn.Module"),
        ("net.py:broken", {}, "failed with ValueError: no weights here"),
        ("net.py:leaves", {}, "failed with SystemExit: 3"),
        (
            "net.py:Net",
            {"widht": 3},
            r"does not take these arguments: .*'widht'.*width: 'int' = 4.*--spec-arg",
        ),
        ("syntax.py:Net", {}, "importing `.*syntax.py` failed with SyntaxError"),
        ("missing.py:Net", {}, "failed with ModuleNotFoundError: No module named 'nonesuch'"),
        ("nonesuch_package.sub:Net", {}, "there is no module `nonesuch_package`"),
        ("missing:Net", {}, "failed with ModuleNotFoundError"),
        ("exits:Net", {}, "failed with SystemExit"),
        ("torchvision:resnet81", {}, "torchvision has no model `resnet81`: did you mean `resnet18`"),
        ("torchvision:zzz", {}, "list_models"),
        ("torchvision:alexnet", {"nope": 1}, "unexpected keyword argument 'nope'"),
    ),
)
def test_what_is_wrong_with_a_factory_is_said(
    write: Write, factory: str, args: dict[str, object], message: str
) -> None:
    spec = write(factory, syntax="def", missing="import nonesuch", exits="raise SystemExit")
    with pytest.raises(SpecError, match=message):
        build_model(replace(spec, args=args))


def test_the_cause_of_a_failure_is_kept(write: Write) -> None:
    with pytest.raises(SpecError) as caught:
        build_model(write("net.py:broken"))
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("factory", "args", "message"),
    (
        ("net.py:Net", {}, "is code outside torchvision, timm, transformers.*--trust-spec"),
        ("os:system", {"command": "true"}, "is code outside"),
        ("torchvision.models.resnet:torch.hub.load", {}, "is code outside"),
        ("torchvision.models.resnet:partial", {}, "is no model"),
        ("torchvision.datasets.utils:download_url", {}, "is no model"),
        ("torchvision.models:get_model", {"name": "alexnet"}, "is no model"),
        ("torchvision.models.resnet:ResNet18_Weights", {}, "is no model"),
        ("timm.models:create_model", {"model_name": "hf-hub:someone/net"}, "is no model"),
        ("timm.models:load_state_dict_from_hf", {"model_id": "someone/net"}, "is no model"),
        ("torchvision.models:resnet18", {"weights": "DEFAULT"}, "passes `weights`"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "passes `weights`"),
        ("timm:resnet10t", {"pretrained": True}, "passes `pretrained`"),
        ("timm:resnet10t", {"checkpoint_path": "/etc/x"}, "passes `checkpoint_path`"),
    ),
)
def test_a_spec_inside_a_checkpoint_runs_nothing_else(
    write: Write, factory: str, args: dict[str, object], message: str
) -> None:
    if factory.startswith("timm.") and find_spec("timm") is None:
        pytest.skip("timm is not installed")
    spec = replace(write(factory), args=args, trusted=False)
    with pytest.raises(SpecError, match=message):
        build_model(spec)


def test_trust_is_given_by_argument_and_models_need_none(write: Write) -> None:
    untrusted = replace(write("net.py:Net"), trusted=False)
    assert build_model(untrusted, trust=True).body.out_features == 4  # type: ignore[union-attr]
    for factory in ("torchvision:alexnet", "torchvision.models:alexnet", "torchvision.models:AlexNet"):
        assert build_on_meta(ModelSpec(factory, trusted=False)).features[0].out_channels == 64  # type: ignore[index,union-attr]


@pytest.mark.parametrize(
    "name", ("googlenet", "inception_v3", "fcn_resnet50", "fasterrcnn_resnet50_fpn", "r3d_18")
)
def test_torchvision_models_are_built_without_weights_or_warnings(name: str) -> None:
    model = build_on_meta(read_spec(f"torchvision:{name}"))
    assert all(parameter.is_meta for parameter in model.parameters())


def test_auxiliary_heads_follow_the_arguments() -> None:
    assert build_on_meta(read_spec("torchvision:googlenet")).aux1 is not None
    assert build_on_meta(read_spec("torchvision:googlenet", spec_args=["aux_logits=false"])).aux1 is None


def test_timm_models_are_built() -> None:
    pytest.importorskip("timm")
    spec = read_spec("timm:resnet10t.c3_in1k", spec_args=["num_classes=7"], input=["3x32x32"])
    args, _ = example_inputs(spec)
    assert build_model(spec)(*args).shape == (1, 7)
    with pytest.raises(SpecError, match="timm has no model `resnet10tt`: did you mean"):
        build_model(replace(spec, factory="timm:resnet10tt"))


class Tied(nn.Module):
    """Ties two parameters, and asks a tensor for its value while it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("rates", torch.linspace(0, 1, int(torch.tensor(4).item())))


def test_ties_survive_the_meta_device() -> None:
    model = to_meta(Tied())
    assert model.a.weight is model.b.weight  # type: ignore[union-attr]
    assert model.a.weight.is_meta  # type: ignore[union-attr]


def test_what_cannot_be_built_on_meta_is_moved_there(write: Write) -> None:
    source = (
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(int(torch.tensor(3).item()), 2)\n"
        "def fixed():\n    return nn.Linear(3, 2, device='cpu')\n"
    )
    for factory in ("net.py:Net", "net.py:fixed"):
        model = build_on_meta(write(factory, net=source))
        assert all(parameter.is_meta for parameter in model.parameters())
    with pytest.raises(SpecError, match="failed with ValueError"):
        build_on_meta(write("net.py:broken"))


def test_inputs_are_made_up_by_shape_and_dtype() -> None:
    spec = ModelSpec(
        "torchvision:resnet18",
        inputs=(
            InputSpec((3, 4)),
            InputSpec((5,), "int64", high=7),
            InputSpec((2,), "bool"),
            InputSpec((), "float16"),
        ),
    )
    args, kwargs = example_inputs(spec, batch=64)
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in args] == [
        ((64, 3, 4), torch.float32),
        ((64, 5), torch.int64),
        ((64, 2), torch.bool),
        ((64,), torch.float16),
    ]
    assert not kwargs
    assert (int(args[1].min()), int(args[1].max())) == (0, 6)
    again, _ = example_inputs(spec, batch=64)
    assert all(torch.equal(a, b) for a, b in zip(args, again, strict=True))
    other, _ = example_inputs(spec, batch=64, seed=1)
    assert not torch.equal(args[0], other[0])


def test_named_inputs_become_keywords_and_floats_take_a_dtype() -> None:
    spec = ModelSpec(
        "torchvision:resnet18", inputs=(InputSpec((3,), name="x"), InputSpec((3,), "int64", "ids"))
    )
    args, kwargs = example_inputs(spec, dtype=torch.float64, device="meta")
    assert args == ()
    found: dict[str, Tensor] = kwargs
    assert {name: tensor.dtype for name, tensor in found.items()} == {"x": torch.float64, "ids": torch.int64}
    assert all(tensor.is_meta for tensor in found.values())
