"""Specs as TOML and JSON hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.errors import SpecError
from prunecli.spec import (
    DataSpec,
    InputSpec,
    Metric,
    ModelSpec,
    Normalize,
    Target,
    TaskSpec,
    from_json_dict,
    to_json_dict,
)
from prunecli.spec.model_spec import FLOAT_DTYPES, INTEGER_DTYPES

MINIMAL = {"model": {"factory": "model.py:build"}, "input": {"shape": [3, 8, 8]}}

names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
shapes = st.lists(st.integers(1, 100), min_size=1, max_size=4).map(tuple)
float_inputs = st.builds(InputSpec, shapes, st.sampled_from(FLOAT_DTYPES))
token_inputs = st.builds(
    InputSpec, shapes, st.sampled_from(INTEGER_DTYPES), st.none(), st.none() | st.integers(1, 9)
)
named_inputs = st.lists(names, min_size=1, max_size=3, unique=True).map(
    lambda found: tuple(InputSpec((4,), name=name) for name in found)
)
sources = st.none() | st.sampled_from(
    (
        "npz:../digits.npz#train[:1024]",
        "idx:a.gz,b.gz",
        "random:8",
        "torchvision:CIFAR10?split=test",
        "d.py:make",
    )
)
numbers = st.floats(0.1, 9.0)
normalizations = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=3).map(
    lambda pairs: Normalize(tuple(mean for mean, _ in pairs), tuple(std for _, std in pairs))
)
data_specs = st.builds(
    DataSpec,
    sources,
    sources,
    sources,
    st.none() | normalizations,
    st.none() | st.integers(1, 300),
    st.none() | st.integers(1, 300),
)
specs = st.builds(
    ModelSpec,
    factory=st.sampled_from(
        ("torchvision:resnet18", "timm:resnet10t.c3_in1k", "nets/model.py:net", "package.module:Net.small")
    ),
    args=st.dictionaries(names, plain, max_size=3),
    inputs=st.lists(float_inputs | token_inputs, max_size=3).map(tuple) | named_inputs,
    data=data_specs,
    task=st.builds(
        TaskSpec, st.sampled_from(("cross-entropy", "mse", "bce", "loss.py:mine")), st.sampled_from(Metric)
    )
    | st.builds(
        TaskSpec,
        st.sampled_from(("mse", "bce", "loss.py:mine")),
        st.just(Metric.LOSS),
        st.just(Target.INPUT),
    ),
)


@given(specs)
def test_a_spec_survives_json(spec: ModelSpec) -> None:
    text = json.dumps(to_json_dict(spec), allow_nan=False)
    assert from_json_dict(json.loads(text)) == spec


def test_a_minimal_table_gets_the_defaults() -> None:
    spec = from_json_dict(MINIMAL)
    assert spec.inputs == (InputSpec((3, 8, 8), "float32"),)
    assert spec.data == DataSpec()
    assert spec.task == TaskSpec("cross-entropy", Metric.TOP1)
    assert not spec.trusted


def test_the_target_may_be_the_input() -> None:
    spec = from_json_dict({**MINIMAL, "task": {"loss": "mse", "target": "input"}})
    assert spec.task == TaskSpec("mse", Metric.LOSS, Target.INPUT)
    assert not spec.task.counts_hits
    assert to_json_dict(spec)["task"] == {"loss": "mse", "metric": "loss", "target": "input"}
    assert "target" not in to_json_dict(from_json_dict(MINIMAL))["task"]  # older files stay as they were


def test_folders_stay_out_of_the_json() -> None:
    spec = ModelSpec(
        "/home/someone/nets/model.py:net",
        data=DataSpec(
            "npz:/home/someone/a.npz#train[:9]", r"imagefolder:C:\someone\pictures", "idx:~/a.gz,b.gz"
        ),
        task=TaskSpec("/home/someone/loss.py:mine"),
        base=Path("/home/someone"),
    )
    table = to_json_dict(spec)
    assert "someone" not in json.dumps(table)
    assert table["model"]["factory"] == "model.py:net"
    assert table["data"] == {
        "sample": "npz:a.npz#train[:9]",
        "train": "imagefolder:pictures",
        "test": "idx:a.gz,b.gz",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"modle": {}}, "unknown key `modle`: did you mean `model`"),
        (
            {"model": {"factory": "a.py:b", "arg": {}}},
            r"\[model\] has an unknown key `arg`: did you mean `args`",
        ),
        (
            {"input": {"shape": [1], "size": 3}},
            r"unknown key `size`: .*known here: shape, dtype, name, high|did you",
        ),
        ({"data": {"tests": "random:3"}}, "did you mean `test`"),
        ({"task": {"zzz": 1}}, "known here: loss, metric, target"),
        ({"model": None}, r"no \[model\] table"),
        ({"model": []}, r"\[model\] is a list, not a table"),
        ({"model": {}}, "has no `factory`"),
        ({"model": {"factory": 3}}, r"factory is 3 \(int\), not a text"),
        ({"model": {"factory": "nonsense"}}, "names no factory"),
        ({"model": {"factory": "a.py:b", "args": [1]}}, "args is a list, not a table"),
        ({"model": {"factory": "a.py:b", "args": {"x": float("inf")}}}, "args.x holds inf"),
        ({"model": {"factory": "a.py:b", "args": {"x y": 1}}}, "no keyword can have"),
        ({"input": {}}, "has no `shape`"),
        ({"input": {"shape": 3}}, "not a list of whole numbers"),
        ({"input": {"shape": [3.5]}}, "not a whole number"),
        ({"input": {"shape": [0]}}, "not made of positive integers"),
        ({"input": {"shape": [3], "dtype": "float"}}, "`float` is not one of"),
        ({"input": {"shape": [3], "high": 4}}, "needs an integer dtype"),
        ({"input": {"shape": [3], "name": "a b"}}, "cannot be a keyword"),
        ({"input": [{"shape": [3], "name": "a"}, {"shape": [3], "name": "a"}]}, "share one name"),
        ({"input": [{"shape": [3], "name": "a"}, {"shape": [3]}]}, "Name all of them, or none"),
        ({"data": {"normalize": {"mean": [0.5]}}}, "both `mean` and `std`"),
        ({"data": {"normalize": {"mean": [0.5], "std": [1, 2]}}}, "as many of each"),
        ({"data": {"normalize": {"mean": [0.5], "std": [0]}}}, "above 0"),
        ({"data": {"normalize": {"mean": ["a"], "std": [1]}}}, "not a number"),
        ({"data": {"crop": 0}}, "crop = 0 must be at least 1"),
        ({"task": {"metric": "top2"}}, "did you mean `top[15]`"),
        ({"task": {"loss": "crossentropy"}}, "not one of cross-entropy, mse, bce"),
        ({"task": {"loss": "a:b:c"}}, "names no factory"),
        ({"task": {"target": "inputs"}}, "target = `inputs` is unknown: did you mean `input`"),
        ({"task": {"target": "input"}}, 'target = "input" needs a loss between values: `mse`'),
        (
            {"task": {"target": "input", "loss": "mse", "metric": "top1"}},
            "metric = `top1` counts right labels",
        ),
    ),
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        from_json_dict({**MINIMAL, **change})


@pytest.mark.parametrize("table", (None, 3, [], "text"))
def test_json_that_is_no_table_is_refused(table: object) -> None:
    with pytest.raises(SpecError):
        from_json_dict(table)
