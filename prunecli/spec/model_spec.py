"""The spec as frozen values, and the rule for which of its texts may run code. No torch, no files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from prunecli.errors import SpecError

FLOAT_DTYPES = ("float32", "float64", "float16", "bfloat16")
INTEGER_DTYPES = ("int64", "int32", "int16", "int8", "uint8", "bool")
MOST_VALUES = 2**28
"""How many values one sample may have; each is made up, and run, before any data is looked at."""
TRUSTED_PACKAGES = ("torchvision", "timm", "transformers")
"""The packages in which a spec that came inside a checkpoint may name factories."""


class Metric(str, Enum):
    """The number that says how good the model is; loss is better when lower."""

    TOP1 = "top1"
    TOP5 = "top5"
    LOSS = "loss"


class Target(str, Enum):
    """What the loss compares outputs with."""

    LABEL = "label"
    INPUT = "input"  # the first input itself, as in autoencoders


class FactoryKind(str, Enum):
    """Where a factory is looked up; told by the text alone."""

    TORCHVISION = "torchvision"  # torchvision:resnet18
    TIMM = "timm"  # timm:resnet10t.c3_in1k
    HUGGING_FACE = "hf"  # hf:path/to/folder#BertForSequenceClassification
    TRANSFORMERS = "transformers"  # transformers:BertForSequenceClassification
    FILE = "file"  # path/to/file.py:factory
    MODULE = "module"  # package.module:factory


@dataclass(frozen=True)
class Reference:
    """A name of code, taken apart: `model.py:net` is (FILE, "model.py", "net")."""

    kind: FactoryKind
    place: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Take `text` apart; nothing is imported.

        Raises:
            SpecError: the text has none of the forms.

        >>> Reference.parse("nets/model.py:net")
        Reference(kind=<FactoryKind.FILE: 'file'>, place='nets/model.py', name='net')
        """
        if text.startswith("hf:"):
            folder, hash_mark, name = text.removeprefix("hf:").partition("#")
            if folder and name.isidentifier() is bool(hash_mark):
                return cls(FactoryKind.HUGGING_FACE, folder, name)
        place, colon, name = text.rpartition(":")
        if colon and name:
            if place == "transformers" and name.isidentifier():
                return cls(FactoryKind.TRANSFORMERS, place, name)
            if place in ("torchvision", "timm"):
                return cls(FactoryKind(place), place, name)
            if place.endswith(".py") and is_dotted_name(name):
                return cls(FactoryKind.FILE, place, name)
            if is_dotted_name(place) and is_dotted_name(name):
                return cls(FactoryKind.MODULE, place, name)
        raise SpecError(
            f"`{text}` names no factory. Write `torchvision:NAME`, `timm:NAME`, `hf:FOLDER`, "
            "`package.module:FUNCTION` or `path/to/file.py:FUNCTION`, or give a spec file that ends in "
            "`.toml`."
        )


def is_dotted_name(text: str) -> bool:
    """Say whether `text` is a Python name such as `package.module`."""
    return all(part.isidentifier() for part in text.split("."))


@dataclass(frozen=True)
class InputSpec:
    """One input of the model: the shape of one sample, without the batch dimension."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    name: str | None = None
    """Passed by this keyword; by position if None."""
    high: int | None = None
    """Integers are drawn from [0, high) where an example is made up."""

    def __post_init__(self) -> None:
        """Check each field."""
        if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in self.shape):
            raise SpecError(f"The input shape {list(self.shape)} is not made of positive integers.")
        if math.prod(self.shape) > MOST_VALUES:
            raise SpecError(
                f"One sample of shape {list(self.shape)} has more than {MOST_VALUES:,} values. Correct it."
            )
        if self.dtype not in FLOAT_DTYPES + INTEGER_DTYPES:
            known = ", ".join(FLOAT_DTYPES + INTEGER_DTYPES)
            raise SpecError(f"The input dtype `{self.dtype}` is not one of {known}.")
        if self.name is not None and not self.name.isidentifier():
            raise SpecError(f"The input name `{self.name}` cannot be a keyword of `forward`.")
        if self.high is not None and (self.high < 1 or self.dtype not in INTEGER_DTYPES):
            raise SpecError(f"`high` = {self.high} needs an integer dtype and must be at least 1.")

    @property
    def is_float(self) -> bool:
        """Say whether the values are real numbers."""
        return self.dtype in FLOAT_DTYPES


@dataclass(frozen=True)
class Normalize:
    """Per channel: (value - mean) / std. One number stands for all channels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that the two belong together."""
        if not self.mean or len(self.mean) != len(self.std):
            raise SpecError(
                f"normalize has {len(self.mean)} means and {len(self.std)} stds; give as many of each."
            )
        if min(self.std) <= 0:
            raise SpecError(f"normalize has std {list(self.std)}; every std must be above 0.")


@dataclass(frozen=True)
class DataSpec:
    """Where samples come from, each a source as in `npz:digits.npz#train[:1024]`."""

    sample: str | None = None
    """What importance is measured on."""
    train: str | None = None
    """What fine-tuning trains on."""
    test: str | None = None
    """What accuracy is reported on."""
    normalize: Normalize | None = None
    resize: int | None = None
    """Shorter side of a picture file before the crop; 256/224 of the input if None."""
    crop: int | None = None
    """Side of the centre crop of a picture file; the input's size if None."""

    def __post_init__(self) -> None:
        """Check the two sizes."""
        for key, size in (("resize", self.resize), ("crop", self.crop)):
            if size is not None and size < 1:
                raise SpecError(f"[data] {key} = {size} must be at least 1.")


@dataclass(frozen=True)
class TaskSpec:
    """What the model is judged by."""

    loss: str = "cross-entropy"
    """`cross-entropy`, `mse`, `bce`, or `file.py:loss`."""
    metric: Metric = Metric.TOP1
    target: Target = Target.LABEL

    def __post_init__(self) -> None:
        """Check that the loss is known, or names code, and that it suits the target."""
        if ":" in self.loss:
            Reference.parse(self.loss)
        elif self.loss not in LOSSES:
            raise SpecError(
                f"[task] loss = `{self.loss}` is not one of {', '.join(LOSSES)}, and names no "
                "`file.py:FUNCTION`."
            )
        if self.target is Target.INPUT and self.loss == "cross-entropy":
            raise SpecError(
                '[task] target = "input" needs a loss between values: `mse`, `bce` or `file.py:FUNCTION`.'
            )
        if self.target is Target.INPUT and self.metric is not Metric.LOSS:
            raise SpecError(
                f"[task] metric = `{self.metric.value}` counts right labels; "
                'with target = "input" it is `loss`.'
            )

    @property
    def counts_hits(self) -> bool:
        """Say whether it has a meaning to ask which share of the answers is right."""
        return self.target is Target.LABEL and self.loss != "mse"


LOSSES = ("cross-entropy", "mse", "bce")


@dataclass(frozen=True)
class ModelSpec:
    """How to build, feed and check a model."""

    factory: str
    args: Mapping[str, object] = field(default_factory=dict)
    inputs: tuple[InputSpec, ...] = ()
    data: DataSpec = field(default_factory=DataSpec)
    task: TaskSpec = field(default_factory=TaskSpec)
    base: Path = field(default_factory=Path, compare=False)
    """The folder that relative paths start from. It never enters the JSON."""
    trusted: bool = field(default=True, compare=False)
    """False if the spec came inside a checkpoint: then it may only name what ships in TRUSTED_PACKAGES."""
    granted: frozenset[str] = field(default=frozenset(), compare=False)
    """Texts that the user typed, which may run code although the rest of the spec may not."""

    def __post_init__(self) -> None:
        """Check what can be checked without importing anything."""
        Reference.parse(self.factory)
        if not all(isinstance(name, str) and name.isidentifier() for name in self.args):
            raise SpecError(
                f"The arguments of `{self.factory}` have names that no keyword can have: {list(self.args)}."
            )
        names = [item.name for item in self.inputs if item.name is not None]
        if len(set(names)) != len(names):
            raise SpecError(f"Two inputs share one name: {', '.join(names)}.")
        if 0 < len(names) < len(self.inputs):
            raise SpecError("Some inputs have names and some have none. Name all of them, or none.")

    def may_run(self, text: str) -> bool:
        """Say whether the code that `text` names may be run."""
        return self.trusted or text in self.granted

    def resolve(self, path: str) -> Path:
        """Return where a path in this spec points to, whether or not there is anything.

        Raises:
            SpecError: no file could have such a name, or nobody may look there.
        """
        try:
            place = self.base / Path(path).expanduser()
            place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, the home of nobody
            reason = (getattr(error, "strerror", None) or str(error)).lower()
            raise SpecError(f"`{path[:200]}` in the spec is no path to read: {reason}.") from None
        return place


def change_paths(text: str, change: Callable[[str], str]) -> str:
    """Return a factory, source or loss with each path in it changed; texts without paths stay as they are.

    >>> change_paths("idx:images.gz,labels.gz[:10]", "data/{}".format)
    'idx:data/images.gz,data/labels.gz[:10]'
    """
    scheme, colon, place = text.partition(":")
    if colon and scheme == "idx":
        return f"idx:{','.join(map(change, place.split(',')))}"
    if colon and scheme in ("npz", "imagefolder", "hf"):
        return f"{scheme}:{change(place)}"
    return change(text) if ".py:" in text else text


def is_absolute(path: str) -> bool:
    """Say whether `path` is absolute here or on Windows, or starts at someone's home."""
    return path.startswith(("/", "\\", "~")) or re.match(r"[A-Za-z]:[\\/]", path) is not None
