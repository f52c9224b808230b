"""Save and load of networks made smaller by hand: `narrow(model)` changes the dense one in place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from prunecli.errors import CheckpointError, OutputError, SpecError
from prunecli.export.record import METADATA_KEY, PrunedRecord, write_sizes
from prunecli.export.to_loader import write_loader
from prunecli.export.to_safetensors import load, read_record, save, to_bytes
from prunecli.graph import twins
from prunecli.model import build_model
from prunecli.spec import ModelSpec, read_spec, to_json_dict

SOURCE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Convolution, norm, a tied pair, a hidden buffer, a list of parameters, and a plain tensor."""

    def __init__(self, width=8, plain=True):
        super().__init__()
        self.width = width
        self.sizes = (width, 3)
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.up = nn.Linear(width, 6)
        self.tied = nn.Linear(width, 6)
        self.tied.weight = self.up.weight
        self.conv.bias.requires_grad_(False)
        self.register_buffer("gain", torch.linspace(0.5, 1.5, width), persistent=False)
        self.listed = [self.up.bias, {"norm": self.norm.weight}]
        if plain:
            self.plain = torch.full((6,), 0.25)

    def forward(self, x):
        y = self.norm(self.conv(x)).mean((2, 3)) * self.gain
        z = self.up(y) + self.tied(y) * getattr(self, "plain", 1.0)
        return z + self.listed[0] + self.listed[1]["norm"].sum()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Cached(nn.Module):
    """Makes a buffer in its first forward."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 4)

    def forward(self, x):
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.arange(4.0), persistent=False)
        return self.out(x) * self.table
'''


@dataclass(frozen=True)
class Case:
    """A network of SOURCE, made smaller."""

    factory: str
    inputs: Tensor
    narrow: Callable[[nn.Module], None]
    record: PrunedRecord


def halve(old: Tensor, *dims: int) -> nn.Parameter:
    """Keep the odd positions of the dimensions."""
    for dim in dims:
        old = old.index_select(dim, torch.arange(1, old.shape[dim], 2))
    return nn.Parameter(torch.randn_like(old))


def narrow_net(model: nn.Module) -> None:
    model.width, model.sizes = 4, (4, 3)
    model.conv.weight, model.conv.out_channels = halve(model.conv.weight, 0), 4
    model.conv.bias = halve(model.conv.bias, 0).requires_grad_(False)
    model.norm.weight, model.norm.bias = halve(model.norm.weight, 0), halve(model.norm.bias, 0)
    model.norm.running_mean, model.norm.running_var, model.norm.num_features = (
        torch.randn(4),
        torch.rand(4),
        4,
    )
    model.up.weight = model.tied.weight = halve(model.up.weight, 1)
    model.up.bias = nn.Parameter(torch.randn(6))
    model.gain = torch.tensor([1.0, 2.0, 3.0, 4.0])
    model.listed = [model.up.bias, {"norm": model.norm.weight}]


def narrow_attention(model: nn.Module) -> None:
    twins.install(model, {"attention": "SizedMultiheadAttention"})
    attention = model.attention
    attention.num_heads = 3
    for name in ("in_proj_weight", "in_proj_bias"):
        old = getattr(attention, name)
        setattr(attention, name, nn.Parameter(torch.randn(36, *old.shape[1:])))
    attention.out_proj.weight = nn.Parameter(torch.randn(16, 12))


def fill_recurrent(model: nn.Module) -> None:
    for parameter in model.parameters():
        nn.init.normal_(parameter)


NET_SIZES = write_sizes(
    {"": {"width": 4, "sizes": (4, 3)}, "conv": {"out_channels": 4}, "norm": {"num_features": 4}}
)
CASES = {
    "net": Case("Net", torch.randn(2, 3, 5, 5), narrow_net, PrunedRecord(attributes=NET_SIZES)),
    "recurrent": Case("Recurrent", torch.randn(2, 5, 4), fill_recurrent, PrunedRecord()),
    "attention": Case(
        "Attention",
        torch.randn(2, 5, 16),
        narrow_attention,
        PrunedRecord(
            attributes={"attention": {"num_heads": 3}}, rewritten={"attention": "SizedMultiheadAttention"}
        ),
    ),
    "cached": Case(
        "Cached",
        torch.randn(2, 4),
        lambda model: setattr(model, "_ran", model(torch.ones(1, 4)).shape),
        PrunedRecord(),
    ),
}


@dataclass(frozen=True)
class Pruned:
    """What a test works on."""

    model: nn.Module
    inputs: Tensor
    record: PrunedRecord
    spec: ModelSpec


def prune(case: Case, folder: Path) -> Pruned:
    (folder / "spec.toml").write_text(
        f'[model]\nfactory = "nets.py:{case.factory}"\n[input]\nshape = {list(case.inputs.shape[1:])}\n'
    )
    spec = read_spec(folder / "spec.toml")
    model = build_model(spec)
    with torch.no_grad():
        case.narrow(model)
    return Pruned(model, case.inputs, replace(case.record, spec=to_json_dict(spec)), spec)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the networks' source."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "nets.py").write_text(SOURCE, encoding="utf-8")
    return folder


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def pruned(request: pytest.FixtureRequest, home: Path) -> Pruned:
    return prune(request.param, home)


@pytest.fixture
def net(home: Path) -> Pruned:
    return prune(CASES["net"], home)


def test_load_gives_the_saved_model_bit_for_bit(pruned: Pruned, home: Path) -> None:
    path = home / "x.safetensors"
    save(pruned.model, path, pruned.record, force=True)
    state = torch.random.get_rng_state()
    for loaded in (load(path, trust_spec=True), load(path, pruned.spec), load(path, home / "spec.toml")):
        assert torch.equal(loaded(pruned.inputs), pruned.model(pruned.inputs))
        assert not loaded.training
        assert to_bytes(loaded, pruned.record) == path.read_bytes()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_tied_and_hidden_and_listed_tensors_come_back_as_built(net: Pruned, tmp_path: Path) -> None:
    save(net.model, tmp_path / "x.safetensors", net.record)
    loaded = load(tmp_path / "x.safetensors", net.spec)
    assert loaded.tied.weight is loaded.up.weight
    assert loaded.listed[0] is loaded.up.bias
    assert "gain" not in loaded.state_dict()
    assert not loaded.conv.bias.requires_grad
    assert loaded.conv.weight.requires_grad
    assert loaded.sizes == (4, 3)
    assert loaded.plain.device.type == "cpu"


def test_the_file_holds_plain_tensors_once_and_one_record(net: Pruned, tmp_path: Path) -> None:
    save(net.model, tmp_path / "x.safetensors", net.record)
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert list(file.metadata()) == [METADATA_KEY]
        assert "tied.weight" not in file.keys()  # noqa: SIM118  (no mapping)
    found = read_record(tmp_path / "x.safetensors")
    assert found == replace(net.record, aliases={"tied.weight": "up.weight"}, non_persistent=("gain",))


def test_saving_leaves_the_model_alone_and_takes_views(tmp_path: Path, net: Pruned) -> None:
    storage = torch.randn(100, 100)
    net.model.gain = storage[0, :8:2]
    net.model.conv.weight = nn.Parameter(net.model.conv.weight.to(memory_format=torch.channels_last))
    save(net.model, tmp_path / "x.safetensors", net.record)
    assert (tmp_path / "x.safetensors").stat().st_size < 8000
    assert net.model.gain.untyped_storage().nbytes() == 40_000
    assert torch.allclose(load(tmp_path / "x.safetensors", net.spec)(net.inputs), net.model(net.inputs))


def test_an_existing_file_needs_force(tmp_path: Path, net: Pruned) -> None:
    save(net.model, tmp_path / "x.safetensors", net.record)
    with pytest.raises(OutputError, match="there already"):
        save(net.model, tmp_path / "x.safetensors", net.record)
    save(net.model, tmp_path / "x.safetensors", net.record, force=True)


def test_a_spec_inside_the_file_is_not_trusted(tmp_path: Path, net: Pruned) -> None:
    save(net.model, tmp_path / "x.safetensors", net.record)
    with pytest.raises(SpecError, match="--trust-spec"):
        load(tmp_path / "x.safetensors")


def test_a_file_without_a_spec_needs_one(tmp_path: Path, net: Pruned) -> None:
    save(net.model, tmp_path / "x.safetensors", replace(net.record, spec=None))
    with pytest.raises(CheckpointError, match="holds no spec"):
        load(tmp_path / "x.safetensors")
    assert torch.equal(load(tmp_path / "x.safetensors", net.spec)(net.inputs), net.model(net.inputs))


def change(path: Path, change_tensors: Callable[[dict[str, Tensor]], object], **fields: object) -> None:
    """Rewrite a pruned file with other tensors or fields."""
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        record = json.loads(file.metadata()[METADATA_KEY]) | fields
    change_tensors(tensors)
    safetensors.torch.save_file(tensors, path, {METADATA_KEY: json.dumps(record)})


@pytest.mark.parametrize(
    ("change_tensors", "fields", "message"),
    (
        (
            lambda t: t.pop("up.bias"),
            {},
            r"1 missing \(`up.bias`\), 0 unexpected.*`nets.py:Net` is what was pruned",
        ),
        (lambda t: t.update({"a.b": torch.ones(1)}), {}, r"0 missing, 1 unexpected \(`a.b`\)"),
        (
            lambda t: t.update({"up.bias": torch.ones(1, 6)}),
            {},
            "`up.bias` has 2 dimensions, but the model builds 1",
        ),
        (lambda t: None, {"aliases": {"tied.weight": "no"}}, "`tied.weight` is tied to `no`"),
        (lambda t: None, {"attributes": {"no": {"a": 1}}}, "no module `no`"),
        (lambda t: None, {"attributes": {"up": {"a": 1}}}, "module `up` has no attribute `a`"),
        (lambda t: None, {"rewritten": {"up": "Nobody"}}, "Nobody"),
        (lambda t: None, {"rewritten": {"no": "SizedMultiheadAttention"}}, "rewrites is not there"),
        (lambda t: t.update({"a.b": torch.ones(1)}), {"non_persistent": ["gain", "a.b"]}, "no module `a`"),
    ),
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path,
    net: Pruned,
    change_tensors: Callable[[dict[str, Tensor]], object],
    fields: dict[str, object],
    message: str,
) -> None:
    path = tmp_path / "x.safetensors"
    save(net.model, path, net.record)
    change(path, change_tensors, **fields)
    with pytest.raises(CheckpointError, match=message):
        load(path, net.spec)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        load(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load(tmp_path / "x.safetensors")
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "y.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="was not written by prunecli"):
        load(tmp_path / "y.safetensors")


def test_what_the_format_cannot_hold_is_refused_by_name(net: Pruned) -> None:
    net.model.gain = torch.eye(4).to_sparse()
    with pytest.raises(OutputError, match="`gain` has layout torch.sparse_coo"):
        to_bytes(net.model, net.record)
    with pytest.raises(OutputError, match=r"`weight` has no values \(meta device\)"):
        to_bytes(nn.Linear(2, 2, device="meta"), PrunedRecord())


def test_state_that_is_no_tensor_is_refused() -> None:
    class Stateful(nn.Module):
        def get_extra_state(self) -> object:
            return {"seen": 3}

    with pytest.raises(OutputError, match="keeps state that is no tensor"):
        to_bytes(nn.Sequential(Stateful()), PrunedRecord())


LOAD_ALONE = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "prunecli":
            raise ImportError("prunecli must not be needed")


sys.meta_path.insert(0, Blocker())
sys.path = [sys.argv[1], *(entry for entry in sys.path if entry)]
import torch

torch.set_num_threads(1)
from load_pruned import load

inputs, wanted = torch.load("case.pt")
assert torch.equal(load()(inputs), wanted)
"""


def test_the_written_loader_needs_torch_and_safetensors_alone(pruned: Pruned, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(SOURCE, encoding="utf-8")
    save(pruned.model, tmp_path / "x.safetensors", pruned.record)
    text = write_loader(pruned.record, pruned.spec, "x.safetensors")
    assert ("class SizedMultiheadAttention" in text) == bool(pruned.record.rewritten)
    (tmp_path / "load_pruned.py").write_text(text, encoding="utf-8")
    torch.save((pruned.inputs, pruned.model(pruned.inputs).detach()), tmp_path / "case.pt")
    command = [sys.executable, "-W", "error", "-c", LOAD_ALONE, str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_spec_that_is_not_trusted_never_enters_the_loader(net: Pruned, tmp_path: Path) -> None:
    evil = 'torchvision:x"""\nimport os\n"""'
    for factory in ("nets.py:Net", "os:system"):
        text = write_loader(net.record, replace(net.spec, factory=factory, trusted=False))
        assert "Pass `factory`" in text
        assert "nets.py" not in text
    with pytest.raises((SpecError, ValueError)):
        write_loader(net.record, replace(net.spec, factory=evil))
    text = write_loader(net.record, None, 'a"b\n.safetensors')
    assert r'PRUNED = HERE / "a\"b\n.safetensors"' in text
    compile(text, "load_pruned.py", "exec")


def test_the_written_loader_refuses_files_it_was_not_written_for(net: Pruned, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "x.safetensors").write_bytes(
        to_bytes(net.model, replace(net.record, rewritten={"up": "Twin"}))
    )
    space: dict[str, object] = {"__file__": str(tmp_path / "load_pruned.py"), "__name__": "load_pruned"}
    exec(compile(write_loader(net.record, net.spec, "x.safetensors"), "load_pruned.py", "exec"), space)
    with pytest.raises(ValueError, match="written for a file without rewritten modules"):
        space["load"]()  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="`Twin`, which this prunecli does not know"):
        write_loader(replace(net.record, rewritten={"up": "Twin"}), net.spec)


@pytest.mark.parametrize(
    ("spec", "call"),
    (
        ("torchvision:resnet18", 'get_model("resnet18", weights=None)'),
        ("torchvision:googlenet", 'get_model("googlenet", weights=None, init_weights=False)'),
        ("timm:resnet10t.c3_in1k", 'timm.create_model("resnet10t.c3_in1k")'),
        ("package.module:Net", 'importlib.import_module("package.module")'),
    ),
)
def test_each_kind_of_factory_is_called_in_its_way(net: Pruned, spec: str, call: str) -> None:
    text = write_loader(net.record, replace(net.spec, factory=spec))
    assert call in text
    assert "\nimport sys\n" not in text


def test_arguments_of_the_factory_are_written_as_python(net: Pruned) -> None:
    spec = replace(net.spec, args={"width": 8, "name": 'a"b', "rates": [0.5, None]})
    assert r'found(width=8, name="a\"b", rates=[0.5, None])' in write_loader(net.record, spec)
    with pytest.raises(OutputError, match="argument `activation` of the factory cannot be written"):
        write_loader(net.record, replace(net.spec, args={"activation": nn.ReLU()}))
