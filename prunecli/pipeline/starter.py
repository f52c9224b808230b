"""What is known of a checkpoint's model -> the text of a spec that explains each of its keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prunecli.checkpoint.names import printable
from prunecli.spec import DataSpec, InputSpec

BLANK_FACTORY = "model.py:build"
"""What stands in a spec until its user says how the model is built."""

_ESCAPED = str.maketrans({code: f"\\u{code:04x}" for code in (*range(32), 127)} | {'"': '\\"', "\\": "\\\\"})


@dataclass(frozen=True)
class Starter:
    """The values of a spec, and where each comes from."""

    checkpoint: str
    """The checkpoint's name, without its folder."""
    factory: str
    args: Mapping[str, object]
    inputs: tuple[InputSpec, ...]
    input_source: str
    """How the input is known, or that it is a guess."""
    factory_source: str | None
    """How the factory is known; None: it is a blank to fill in."""
    same: tuple[str, ...] = ()
    """Other factories with the same tensors."""
    near: tuple[str, ...] = ()
    """What the tensors resemble, in words, where no factory has them."""
    classes: tuple[int, str] | None = None
    """How many outputs the last layer has, and its name; where the factory is not known."""
    data: DataSpec = field(default_factory=DataSpec)

    @property
    def is_known(self) -> bool:
        """Whether the factory is known."""
        return self.factory_source is not None

    @property
    def text(self) -> str:
        """The spec as TOML."""
        parts = (self._opening(), self._model(), self._input(), self._data(), _TASK)
        return "\n\n".join("\n".join(part) for part in parts) + "\n"

    def _opening(self) -> Iterator[str]:
        yield f"# How to build, feed and check the model of {printable(self.checkpoint)}."
        yield "# Paths start from the folder of this file."

    def _model(self) -> Iterator[str]:
        yield "[model]"
        if self.is_known:
            yield f"# What builds the network: {self.factory_source}."
        else:
            yield "# FILL IN: the function or class that builds the network, in a file or a package:"
            yield "# path/to/file.py:NAME, package.module:NAME, torchvision:NAME or timm:NAME."
            yield from (f"# Nearly {printable(text)}." for text in self.near)
        yield from (f"# The same tensors, perhaps another network: {text}" for text in self.same)
        yield f"factory = {toml_value(self.factory)}"
        yield "# Keyword arguments that it is called with."
        if self.args or self.is_known:
            yield f"args = {toml_value(dict(self.args))}"
        elif self.classes:
            count, layer = self.classes
            yield f"# `{printable(layer)}`, the last layer in the file, has {count:,} outputs; perhaps:"
            yield f"# args = {{ num_classes = {count} }}"
        else:
            yield "# args = { width = 64 }"

    def _input(self) -> Iterator[str]:
        for item in self.inputs:
            yield "[[input]]" if len(self.inputs) > 1 else "[input]"
            yield "# Shape of one sample, without the batch."
            yield f"# {self.input_source}"
            yield f"shape = {toml_value(list(item.shape))}"
            yield "# What its values are: float32, float16, bfloat16, float64, or integers such as int64."
            yield f"dtype = {toml_value(item.dtype)}"
            if item.high is not None:
                yield "# Made-up integers are drawn below this: the size of the vocabulary."
                yield f"high = {item.high}"
            yield "# Pass it to `forward` by this keyword; by position if there is none."
            yield f"name = {toml_value(item.name)}" if item.name else '# name = "x"'

    def _data(self) -> Iterator[str]:
        yield "[data]"
        yield "# npz:FILE, imagefolder:DIR, idx:IMAGES,LABELS, torchvision:CIFAR10?split=test, file.py:NAME"
        yield "# or random:256 (made up, to try things out); a slice may follow, such as [:1024]."
        for key, meaning, example in _SOURCES:
            value = getattr(self.data, key)
            yield f"# {meaning}"
            yield f"{key} = {toml_value(value)}" if value else f'# {key} = "{example}"'
        yield "# Per channel, after bytes became 0..1; use what the network was trained with."
        yield "# normalize = { mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }"
        yield "# Of picture files: the shorter side before the centre crop, and the side of the crop."
        yield "# resize = 256"
        yield "# crop = 224"


_SOURCES = (
    ("sample", "What importance is measured on; some hundred samples will do.", "npz:train.npz[:1024]"),
    ("train", "What fine-tuning trains on.", "npz:train.npz"),
    ("test", "What accuracy is measured on.", "npz:test.npz"),
)

_TASK = (
    "[task]",
    "# What the output is compared by: cross-entropy, mse, bce, or file.py:FUNCTION of output and target.",
    'loss = "cross-entropy"',
    "# What is reported: top1, top5 or loss.",
    'metric = "top1"',
    '# What it is compared with: "label", or the first "input" itself, as in autoencoders.',
    'target = "label"',
)


def toml_value(value: object) -> str:
    r"""Write a value as TOML does; None has no place there and is left out of tables.

    >>> toml_value({"width": 2, "act": "re\"lu", "sides": [1, 2.5], "aux": False})
    '{ width = 2, act = "re\\"lu", sides = [1, 2.5], aux = false }'
    """
    match value:
        case str():
            return f'"{value.translate(_ESCAPED)}"'
        case Mapping():
            items = ", ".join(
                f"{key} = {toml_value(each)}" for key, each in value.items() if each is not None
            )
            return f"{{ {items} }}" if items else "{}"
        case list() | tuple():
            return f"[{', '.join(map(toml_value, value))}]"
        case _:
            return json.dumps(value)
