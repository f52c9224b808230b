"""`prune --streaming` gives what `prune` gives, with a few tensors in memory at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import prunecli
from prunecli.errors import CheckpointError, NotPrunableError, SpecError, UsageError
from prunecli.on_demand import OnDemand, Read, ReadParts
from prunecli.pipeline.listener import Silent
from prunecli.pipeline.prune import Pruned, prune
from prunecli.pipeline.settings import (
    Budget,
    Choices,
    Decision,
    Files,
    Importance,
    Machine,
    Memory,
    Recovery,
    Source,
    Start,
    Steps,
)
from tests.hugging_face import save

SAMPLES = Path(__file__).parents[2] / "sample_models"
RESNET = SAMPLES / "digits_resnet" / "model.safetensors"
METHODS = ("bn-scale", "fpgm", "magnitude", "random")
CODE = '''
import torch
from torch import nn

class Net(nn.Module):
    """Tied weights, a constant that no checkpoint holds, and blocks that are alike."""

    def __init__(self, blocks, dtype):
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16)) for _ in range(blocks)
        )
        self.head = nn.Linear(16, 12, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.linspace(0, 1, 16), persistent=False)
        self.register_buffer("scale", torch.ones(16))
        self.to(dtype)

    def forward(self, ids):
        stream = self.embed(ids) * self.scale + self.offset
        for block in self.blocks:
            stream = stream + block(stream)
        return self.head(stream.mean(1))

def net(blocks=2, dtype="float32"):
    return Net(blocks, getattr(torch, dtype))

class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.register_buffer("one", torch.zeros(4))
        self.register_buffer("other", self.one)
        self.register_buffer("step", torch.tensor(0.0))
        self.nothing = nn.Parameter(torch.empty(0, 4))

    def forward(self, x):
        return self.layers(x) + self.one * self.other + self.step

class Loose(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.all = [self.layer.weight]

    def forward(self, x):
        return self.layer(x)

class Asking(Loose):
    def __init__(self):
        super().__init__()
        self.bound = float(self.layer.weight.max())
'''


def choices(out: Path, streaming: bool, **changes: Any) -> Choices:
    """Return the choices of a quick run: half of the units, by magnitude."""
    quick = {
        "importance": Importance(method=("magnitude",)),
        "budget": Budget(keep="0.5"),
        "machine": Machine(device="cpu"),
        "files": Files(out=str(out / ("streamed" if streaming else "whole")), onnx=streaming),
        "memory": Memory(streaming),
    }
    return Choices(**{**quick, **changes})


def both(checkpoint: Path, out: Path, **changes: Any) -> tuple[Pruned, Pruned]:
    """Prune with and without streaming, and make sure that all files have the same bytes."""
    whole, streamed = (prune(str(checkpoint), choices(out, way, **changes)) for way in (False, True))
    assert [path.name for path in streamed.files] == [path.name for path in whole.files]
    for one, other in zip(whole.files, streamed.files, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    assert not [parameter for parameter in whole.model.parameters() if isinstance(parameter, OnDemand)]
    assert streamed.plan == whole.plan
    return whole, streamed


def build(
    folder: Path, blocks: int = 2, dtype: str = "float32", saved: str | None = None
) -> tuple[Path, nn.Module]:
    """Write a network of `CODE`, its weights and its spec."""
    (folder / "net.py").write_text(CODE)
    (folder / "net.toml").write_text(
        f'[model]\nfactory = "net.py:net"\nargs = {{ blocks = {blocks}, dtype = "{dtype}" }}\n'
        '[[input]]\nshape = [5]\ndtype = "int64"\nhigh = 12\n'
    )
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    exec(CODE, scope)
    model = scope["net"](blocks, dtype)
    tensors = {name: tensor.to(getattr(torch, saved or dtype)) for name, tensor in model.state_dict().items()}
    del tensors["head.weight"]
    save_file(tensors, folder / "net.safetensors")
    return folder / "net.safetensors", model


@pytest.mark.parametrize("method", METHODS)
def test_the_files_are_the_same_byte_for_byte(method: str, tmp_path: Path) -> None:
    scope = "layer" if method == "fpgm" else "global"
    _, streamed = both(
        RESNET, tmp_path, importance=Importance(method=(method,)), budget=Budget(keep="0.5", scope=scope)
    )
    assert [check.name for check in streamed.report.parity] == ["structure", "numbers"]
    assert streamed.report.accuracy_after is not None
    model = prunecli.load(streamed.files[0], spec=RESNET.with_suffix(".toml"))
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float64"))
def test_tied_weights_constants_and_precisions_stay(dtype: str, tmp_path: Path) -> None:
    path, _ = build(tmp_path, dtype=dtype)
    _, streamed = both(path, tmp_path, budget=Budget(target="params=0.6"))
    model = prunecli.load(streamed.files[0], spec=tmp_path / "net.toml")
    assert model.head.weight is model.embed.weight
    assert model.head.weight.dtype == getattr(torch, dtype)


def test_weights_stay_as_coarse_as_they_are_in_the_file(tmp_path: Path) -> None:
    path, _ = build(tmp_path, dtype="float32", saved="bfloat16")
    _, streamed = both(path, tmp_path)
    assert {tensor.dtype for tensor in load_file(streamed.files[0]).values()} >= {torch.bfloat16}
    assert streamed.report.settings["stored_as"] == "bfloat16, float32"  # constants that no checkpoint holds
    small = prunecli.load(streamed.files[0], spec=tmp_path / "net.toml")
    assert {parameter.dtype for parameter in small.parameters()} == {torch.float32}


@pytest.mark.parametrize("names", (("one", "other"), ("one",), ("other",)))
def test_buffers_of_two_names_stay_one(names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "net.toml").write_text('[model]\nfactory = "net.py:Shared"\n[input]\nshape = [4]\n')
    layers = {"layers.0": nn.Linear(4, 8), "layers.2": nn.Linear(8, 4)}
    tensors = {
        f"{at}.{key}": value for at, layer in layers.items() for key, value in layer.state_dict().items()
    }
    tensors |= {name: torch.arange(4.0) for name in names}
    tensors |= {"step": torch.tensor(3.0), "nothing": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "net.safetensors")
    _, streamed = both(tmp_path / "net.safetensors", tmp_path)
    model = prunecli.load(streamed.files[0], spec=tmp_path / "net.toml")
    assert model.one is model.other
    assert model.one.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shards", ("5KB", "1GB"))
def test_folders_of_hugging_face_are_read_shard_by_shard(shards: str, tmp_path: Path) -> None:
    save("LlamaForCausalLM", tmp_path / "llama", max_shard_size=shards)
    assert (tmp_path / "llama" / "model.safetensors.index.json").exists() == (shards == "5KB")
    both(tmp_path / "llama", tmp_path, budget=Budget(keep="0.75", scope="layer"))


def test_a_pruned_file_is_pruned_again(tmp_path: Path) -> None:
    path, _ = build(tmp_path)
    first, _ = both(path, tmp_path)
    both(first.files[0], tmp_path / "again", source=Source(spec=str(tmp_path / "net.toml")))


def test_plans_and_scores_made_elsewhere_do(tmp_path: Path) -> None:
    path, _ = build(tmp_path)
    whole, _ = both(
        path,
        tmp_path,
        decision=Decision(plan=str(tmp_path / "whole.json")),
        files=Files(out=str(tmp_path / "a"), onnx=False, force=True),
    )
    applied = prune(
        str(path),
        choices(
            tmp_path,
            True,
            decision=Decision(apply=str(tmp_path / "whole.json")),
            budget=Budget(),
            importance=Importance(),
        ),
    )
    assert applied.plan == whole.plan


def test_memory_does_not_grow_with_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = []
    for blocks in (3, 12):
        folder = tmp_path / str(blocks)
        folder.mkdir()
        path, model = build(folder, blocks)
        with monkeypatch.context() as patch:
            held = Held(patch)
            prune(str(path), choices(folder, True))
        peaks.append(held.peak)
        size = sum(parameter.numel() * 4 for parameter in model.parameters())
    largest = 16 * 64 * 4
    assert peaks[1] <= 1.05 * peaks[0]  # which positions are gone is held for every layer
    assert peaks[1] <= 6 * largest < size / 2


class Held:
    """The most bytes that were in memory at one time of all that was read, or made of it to be read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peak, self.alive = 0, list[tuple[StorageWeakRef, int]]()
        new = OnDemand.__new__

        def watched(
            cls: type, shape: Sequence[int], dtype: torch.dtype, read: Read, parts: ReadParts | None = None
        ) -> OnDemand:
            noted = None if parts is None else lambda: (self.noted(part) for part in parts())
            return new(OnDemand, shape, dtype, lambda: self.noted(read()), noted)

        monkeypatch.setattr(OnDemand, "__new__", staticmethod(watched))

    def noted(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.alive = [
            each for each in self.alive if not each[0].expired() and each[0].cdata != storage._cdata
        ]
        self.alive.append((StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self.alive))
        return tensor


REFUSED = {
    "`--at-init` does not go with `--streaming`": {"start": Start(at_init=True)},
    "`--granularity weight` does not": {"importance": Importance(("magnitude",), granularity="weight")},
    "`--steps` does not": {"steps": Steps(steps=2)},
    "`--reconstruct` does not": {"recovery": Recovery(reconstruct=True)},
    "`--recalibrate-bn` does not": {"recovery": Recovery(recalibrate_bn=True)},
    "`--onnx` does not": {"given": frozenset({"onnx"})},
    "`--device cuda` does not": {"machine": Machine(device="cuda")},
    "`--method taylor-fo` looks at samples, .* `magnitude`": {"importance": Importance(("taylor-fo",))},
    "`--method fisher` looks at samples": {"importance": Importance(("bn-scale",), fallback="fisher")},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_needs_the_whole_network_is_refused(message: str, tmp_path: Path) -> None:
    checkpoint = None if "at-init" in message else str(RESNET)
    with pytest.raises(UsageError, match=message):
        prune(checkpoint, choices(tmp_path, True, **REFUSED[message]))


class Meddling(Silent):
    """Does something to a file when a part of the work begins."""

    def __init__(self, stage: str, meddle: Callable[[], object]) -> None:
        self.stage, self.meddle = stage, meddle

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Hear what is done."""
        if what == self.stage:
            self.meddle()


@pytest.mark.parametrize("stage", ("scoring", "proving", "packing", "writing"))
@pytest.mark.parametrize(
    ("change", "reason"),
    (("shorten", "it was written to"), ("write", "it was written to"), ("remove", "no such file")),
)
def test_a_file_that_changes_meanwhile_is_told(change: str, reason: str, stage: str, tmp_path: Path) -> None:
    path, _ = build(tmp_path)
    content = path.read_bytes()
    meddle = {
        "shorten": lambda: os.truncate(path, 2000),
        "write": lambda: path.write_bytes(content[:-9] + bytes(9)),
        "remove": lambda: path.unlink(missing_ok=True),
    }[change]
    with pytest.raises(CheckpointError, match=f"net.safetensors` changed while it was read: {reason}"):
        prune(str(path), choices(tmp_path, True), Meddling(stage, meddle))
    assert not list(tmp_path.glob("*streamed*"))
    assert not list(tmp_path.glob(".*"))


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="`--streaming` reads safetensors"):
        prune(str(SAMPLES / "digits_mlp" / "model.pt"), choices(tmp_path, True))


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    (
        ("Loose", NotPrunableError, "beside those of its modules, where `--streaming` cannot read them"),
        ("Asking", SpecError, "Parameters have no values while the model is built for `--streaming`"),
    ),
)
def test_models_that_need_values_early_are_refused(
    factory: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "net.toml").write_text(f'[model]\nfactory = "net.py:{factory}"\n[input]\nshape = [4]\n')
    renamed = {f"layer.{name}": tensor for name, tensor in nn.Linear(4, 4).state_dict().items()}
    save_file(renamed, tmp_path / "net.safetensors")
    with pytest.raises(error, match=message):
        prune(str(tmp_path / "net.safetensors"), choices(tmp_path, True))


def test_dtypes_that_torch_lacks_are_refused(tmp_path: Path) -> None:
    path, _ = build(tmp_path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + length])
    name = next(iter(table))
    table[name] = {**table[name], "dtype": "C64", "shape": [table[name]["data_offsets"][1] // 8]}
    header = json.dumps(table).encode().ljust(length)
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    with pytest.raises(CheckpointError, match="has dtype `C64`, which cannot be pruned"):
        prune(str(path), choices(tmp_path, True))
