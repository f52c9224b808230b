"""Where specs come from, and what the user may say instead of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from prunecli.errors import SpecError
from prunecli.spec import InputSpec, Metric, Normalize, find_spec, override, read_spec, to_json_dict
from prunecli.spec.discovery import METADATA_KEY, parse_arguments, parse_input

TOML = """
[model]
factory = "model.py:digits_cnn"
args = { classes = 10 }
[input]
shape = [1, 8, 8]
[data]
sample = "npz:digits.npz#train[:1024]"
test = "npz:digits.npz#test"
normalize = { mean = [0.3], std = [0.2] }
[task]
loss = "cross-entropy"
metric = "top5"
"""


def test_a_toml_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(TOML)
    spec = read_spec(tmp_path / "spec.toml")
    assert (spec.factory, spec.args) == ("model.py:digits_cnn", {"classes": 10})
    assert spec.inputs == (InputSpec((1, 8, 8)),)
    assert spec.data.normalize == Normalize((0.3,), (0.2,))
    assert spec.task.metric is Metric.TOP5
    assert spec.base == tmp_path
    assert spec.trusted


def test_several_inputs_are_an_array_of_tables(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(
        '[model]\nfactory="m.py:f"\n[[input]]\nname="ids"\nshape=[16]\ndtype="int64"\nhigh=100\n'
        '[[input]]\nname="mask"\nshape=[16]\n'
    )
    spec = read_spec(tmp_path / "spec.toml")
    assert spec.inputs == (InputSpec((16,), "int64", "ids", 100), InputSpec((16,), name="mask"))


@pytest.mark.parametrize(
    ("text", "shape"),
    (
        ("torchvision:resnet18", (3, 224, 224)),
        ("torchvision:inception_v3", (3, 299, 299)),
        ("torchvision:r3d_18", (3, 16, 112, 112)),
    ),
)
def test_torchvision_models_have_an_input(text: str, shape: tuple[int, ...]) -> None:
    assert read_spec(text).inputs == (InputSpec(shape),)


def test_the_image_size_of_a_transformer_is_its_input() -> None:
    assert read_spec("torchvision:vit_b_16", spec_args=["image_size=64"]).inputs == (InputSpec((3, 64, 64)),)


def test_timm_states_the_input() -> None:
    pytest.importorskip("timm")
    assert read_spec("timm:resnet10t.c3_in1k").inputs == (InputSpec((3, 176, 176)),)
    assert read_spec("timm:resnet10t", spec_args=["in_chans=1"]).inputs == (InputSpec((1, 176, 176)),)
    with pytest.raises(SpecError, match="timm has no model `resnet18x`: did you mean `resnet18`"):
        read_spec("timm:resnet18x")


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SpecError, match=r"pip install 'prunecli\[timm\]'"):
        read_spec("timm:resnet10t")


def test_other_factories_need_an_input() -> None:
    with pytest.raises(SpecError, match="`--input 3x32x32`"):
        read_spec("model.py:net")
    assert read_spec("model.py:net", input=["3x8x8"]).inputs == (InputSpec((3, 8, 8)),)


@pytest.mark.parametrize(
    ("text", "value"),
    (
        ("10", 10),
        ("-2.5", -2.5),
        ("true", True),
        ("null", None),
        ("relu", "relu"),
        ('"10"', "10"),
        ("[2, 4]", [2, 4]),
        ('{"a": 1}', {"a": 1}),
        ("{ a = 1 }", {"a": 1}),
        ("1979-05-27", "1979-05-27"),
        ("inf", "inf"),
        ("1\nother = 2", "1\nother = 2"),
        ("a=b", "a=b"),
        ("", ""),
    ),
)
def test_an_argument_is_a_literal_or_a_text(text: str, value: object) -> None:
    assert parse_arguments([f"name={text}"]) == {"name": value}


@pytest.mark.parametrize("text", ("num_classes", "=3", "a b=3"))
def test_an_argument_has_a_name_and_a_value(text: str) -> None:
    with pytest.raises(SpecError, match="Write `NAME=VALUE`"):
        parse_arguments([text])


@pytest.mark.parametrize(
    ("text", "found"),
    (
        ("3x224x224", InputSpec((3, 224, 224))),
        ("16:int64", InputSpec((16,), "int64")),
        ("ids=16:int64", InputSpec((16,), "int64", "ids")),
        ("3X8x8:float16", InputSpec((3, 8, 8), "float16")),
    ),
)
def test_an_input_is_a_shape(text: str, found: InputSpec) -> None:
    assert parse_input(text) == found


@pytest.mark.parametrize("text", ("", "3x", "3,224,224", "axb", "3x-1", "3x224x224:real", "a b=3"))
def test_what_is_no_input_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse_input(text)


def test_what_the_user_says_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "spec.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    spec = read_spec(
        "specs/spec.toml",
        spec_args={"classes": 3},
        input=["1x9x9"],
        data="npz:specs/other.npz[:5]",
        train_data="imagefolder:pictures",
        test_data="idx:specs/a,b",
    )
    assert spec.args == {"classes": 3}
    assert spec.inputs == (InputSpec((1, 9, 9)),)
    assert spec.data.sample == "npz:other.npz[:5]"
    assert spec.data.train == "imagefolder:../pictures"
    assert spec.data.test == "idx:a,../b"
    assert str(tmp_path) not in json.dumps(to_json_dict(spec))


def test_specs_are_found_in_order(tmp_path: Path) -> None:
    checkpoint = tmp_path / "net.pt"
    beside = tmp_path / "net.toml"
    inside = json.dumps({"spec": to_json_dict(read_spec("torchvision:alexnet"))})
    with pytest.raises(
        SpecError, match=r"--spec torchvision:resnet18.*\n.*`net.toml` beside it: `\[model\]`"
    ):
        find_spec(checkpoint)
    beside.write_text(TOML)
    assert find_spec(checkpoint).factory == "model.py:digits_cnn"
    found = find_spec(checkpoint, metadata={METADATA_KEY: inside})
    assert (found.factory, found.base, found.trusted) == ("torchvision:alexnet", tmp_path, False)
    assert find_spec(checkpoint, metadata={METADATA_KEY: inside}, trust=True).trusted
    explicit = find_spec(checkpoint, "torchvision:vgg11", metadata={METADATA_KEY: inside})
    assert (explicit.factory, explicit.trusted) == ("torchvision:vgg11", True)


def test_what_is_typed_may_say_the_input_of_a_typed_factory() -> None:
    assert find_spec("a.pt", "net.py:build", input=["1x8x8"]).inputs == (InputSpec((1, 8, 8)),)
    vit = find_spec("a.pt", "torchvision:vit_b_16", spec_args=["image_size=32"])
    assert vit.inputs == (InputSpec((3, 32, 32)),)
    with pytest.raises(SpecError, match="does not say what the model takes in"):
        find_spec("a.pt", "net.py:build")


def test_a_spec_inside_may_not_run_what_the_user_did_not_type(tmp_path: Path) -> None:
    table = {"model": {"factory": "evil.py:net"}, "input": {"shape": [3]}, "data": {"test": "evil.py:data"}}
    spec = find_spec(tmp_path / "a.safetensors", metadata={METADATA_KEY: json.dumps({"spec": table})})
    assert not spec.may_run(spec.factory)
    assert not spec.may_run(str(spec.data.test))
    typed = override(spec, data="mine.py:data")
    assert typed.may_run(str(typed.data.sample))
    assert not typed.may_run(typed.factory)


@pytest.mark.parametrize(
    "text", ("{", "3", "[]", "{}", '{"spec": 3}', '{"spec": {"model": {"factory": 1}}}', "[" * 99999)
)
def test_a_damaged_spec_inside_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"inside `a.safetensors` is damaged.*`--spec`"):
        find_spec("a.safetensors", metadata={METADATA_KEY: text})


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    with pytest.raises(SpecError, match="There is no spec file"):
        read_spec(path)
    path.write_text("[model")
    with pytest.raises(SpecError, match="is not TOML"):
        read_spec(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match="cannot be read"):
        read_spec(path)
    path.write_text("[modle]")
    with pytest.raises(SpecError, match=r"spec.toml`: .*did you mean `model`"):
        read_spec(path)


@pytest.mark.parametrize(
    "text", ("resnet18", "torchvision:", ":x", "a b:c", "model.pt", "timm:", "a.py:", "a-b:c", "a:b:c")
)
def test_what_names_no_factory_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="names no factory"):
        read_spec(text, input=["3"])


def test_code_named_inside_a_file_gives_way_to_the_spec_beside_it(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text('[model]\nfactory = "beside.py:net"\n[input]\nshape = [3]\n')
    inside = json.dumps({"spec": {"model": {"factory": "inside.py:net"}, "input": [{"shape": [3]}]}})
    for name in ("net.safetensors", "net.pruned.safetensors", "net.pruned.finetuned.safetensors"):
        assert find_spec(tmp_path / name, metadata={METADATA_KEY: inside}).factory == "beside.py:net"
    trusted = find_spec(tmp_path / "net.pruned.safetensors", metadata={METADATA_KEY: inside}, trust=True)
    assert trusted.factory == "inside.py:net"
    library = json.dumps({"spec": {"model": {"factory": "torchvision:resnet18"}}})
    found = find_spec(tmp_path / "net.pruned.safetensors", metadata={METADATA_KEY: library})
    assert found.factory == "torchvision:resnet18"
    other = find_spec(tmp_path / "other.pruned.safetensors", metadata={METADATA_KEY: inside})
    assert other.factory == "inside.py:net"  # which is refused when it is to be built


def test_a_misspelt_library_is_suggested() -> None:
    with pytest.raises(SpecError, match=r"no package `torchvison` here\. Did you mean `torchvision`\?"):
        read_spec("torchvison:resnet18")
    with pytest.raises(SpecError, match="does not say what the model takes in"):
        read_spec("json:loads")
