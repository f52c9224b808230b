"""Numbers that are unusual: precisions, memory layouts, ties, constant and dead units, NaN and infinity."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prunecli
from prunecli.cli.main import run
from prunecli.model import build_model
from prunecli.pipeline.prune import Pruned, prune
from prunecli.pipeline.settings import Budget, Choices, Files, Importance, Machine, Samples, Source

NET = """
import torch
from torch import nn

class Log(nn.Module):
    def forward(self, x):
        return torch.log(x)

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(16, 12), nn.Linear(16, 12)
        self.out.weight = self.into.weight
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(torch.cat((self.into(x).relu(), self.out(x).tanh()), 1))

def net(middle="ReLU", dtype="float32"):
    inner = Log() if middle == "Log" else nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), inner, nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(24, 4),
    ).to(getattr(torch, dtype))

def tied():
    return Tied()
"""
SPEC = """
[model]
factory = "net.py:{factory}"
args = {{ {args} }}
[input]
shape = [1, 4, 4]
[data]
sample = "random:64"
[task]
loss = "cross-entropy"
"""
State = Mapping[str, Tensor]
HALF = Budget(keep="0.5")
pytestmark = pytest.mark.filterwarnings("ignore::prunecli.data.SyntheticDataWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the network's code."""
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def spec_in(folder: Path, factory: str = "net", args: str = "") -> Path:
    path = folder / "net.toml"
    path.write_text(SPEC.format(factory=factory, args=args))
    return path


def state_of(spec: Path) -> dict[str, Tensor]:
    """Return random parameters, with statistics as after some training."""
    model = build_model(prunecli.read_spec(spec))
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(0))
    return state


def pruned(folder: Path, spec: Path, state: State, method: str = "magnitude", onnx: bool = False) -> Pruned:
    """Save a checkpoint, and prune it to half of its units."""
    torch.save(dict(state), folder / "net.pt")
    return prune(
        str(folder / "net.pt"),
        Choices(
            source=Source(spec=str(spec)),
            samples=Samples(batch_size=16),
            importance=Importance(method=(method,)),
            budget=HALF,
            machine=Machine(device="cpu"),
            files=Files(out=str(folder / "out"), onnx=onnx),
        ),
    )


def kept_units(result: Pruned) -> Mapping[str, tuple[int, ...]]:
    assert result.plan is not None
    return {name: tuple(kept) for name, kept in result.plan.kept().items()}


def output_of(model: nn.Module) -> Tensor:
    batch = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    dtype = next(model.parameters()).dtype
    output: Tensor = model(batch.to(dtype)).detach().float()
    return output


@pytest.mark.parametrize("method", ("magnitude", "taylor-fo"))
@pytest.mark.parametrize("dtype", ("bfloat16", "float16", "float64"))
def test_a_checkpoint_in_another_precision_becomes_that_of_the_model(
    dtype: str, method: str, folder: Path
) -> None:
    spec = spec_in(folder)
    found = pruned(folder, spec, in_precision(state_of(spec), dtype), method)
    assert (found.report.parity[0].dtype, found.report.parity[1].dtype) == ("float64", "float32")
    loaded = prunecli.load(found.files[0], spec=spec)
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    assert torch.equal(output_of(loaded), output_of(found.model))


def in_precision(state: State, dtype: str) -> State:
    return {
        name: tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_half_precision_in_is_half_precision_out(dtype: str, folder: Path) -> None:
    spec = spec_in(folder)
    found = pruned(folder, spec, in_precision(state_of(spec), dtype))
    held = load_file(found.files[0])
    assert {str(tensor.dtype) for tensor in held.values()} == {f"torch.{dtype}", "torch.int64"}
    assert found.report.settings["stored_as"] == dtype
    smaller = found.model.state_dict()
    assert all(torch.equal(tensor.to(smaller[name].dtype), smaller[name]) for name, tensor in held.items())
    loader = folder / "out" / "load.py"
    words = ["export", str(found.files[0]), "--spec", str(spec), "--loader", str(loader), "-q"]
    assert run([*words, "--safetensors", str(folder / "again.safetensors")]) == 0
    assert load_file(folder / "again.safetensors")["3.weight"].dtype == getattr(torch, dtype)
    (folder / "out" / "net.py").write_text(NET)
    scope = {"__file__": str(loader), "__name__": "load"}
    exec(compile(loader.read_text(), loader, "exec"), scope)
    alone: nn.Module = scope["load"]()  # type: ignore[operator]
    assert torch.equal(output_of(alone), output_of(found.model))


def test_only_what_came_in_half_precision_leaves_in_it(folder: Path) -> None:
    spec = spec_in(folder)
    state = state_of(spec)
    found = pruned(folder, spec, {**state, "3.weight": state["3.weight"].bfloat16()})
    held = load_file(found.files[0])
    assert [name for name, tensor in held.items() if tensor.dtype == torch.bfloat16] == ["3.weight"]
    assert found.report.settings["stored_as"] == "float32, bfloat16"
    again = prune(
        str(found.files[0]),
        Choices(
            source=Source(spec=str(spec)),
            importance=Importance(method=("magnitude",)),
            budget=HALF,
            files=Files(out=str(folder / "twice"), onnx=False),
        ),
    )
    assert load_file(again.files[0])["3.weight"].dtype == torch.bfloat16


def test_what_was_trained_is_kept_as_it_was_trained(folder: Path) -> None:
    spec = spec_in(folder)
    torch.save(in_precision(state_of(spec), "bfloat16"), folder / "net.pt")
    words = ["finetune", str(folder / "net.pt"), "--spec", str(spec), "--out", str(folder / "out"), "-q"]
    assert run([*words, "--train-data", "random:16", "--epochs", "1", "--lr", "0.1", "--no-onnx"]) == 0
    held = load_file(folder / "out" / "net.finetuned.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("dtype", ("bfloat16", "float16", "float64"))
def test_a_model_built_in_another_precision_stays_in_it(folder: Path, dtype: str) -> None:
    spec = spec_in(folder, args=f'dtype = "{dtype}"')
    found = pruned(folder, spec, state_of(spec), "taylor-fo")
    loaded = prunecli.load(found.files[0], spec=spec)
    assert {tensor.dtype for tensor in loaded.parameters()} == {getattr(torch, dtype)}
    assert found.report.parity[1].dtype == ("float64" if dtype == "float64" else "float32")


def as_channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def with_gaps(tensor: Tensor) -> Tensor:
    return torch.stack((tensor, tensor), -1)[..., 0]


def backwards(tensor: Tensor) -> Tensor:
    axes = tuple(reversed(range(tensor.dim())))
    return tensor.permute(axes).contiguous().permute(axes)


@pytest.mark.parametrize("laid_out", (as_channels_last, with_gaps, backwards))
def test_how_tensors_lie_in_memory_changes_nothing(
    laid_out: Callable[[Tensor], Tensor], folder: Path
) -> None:
    spec = spec_in(folder)
    state = state_of(spec)
    found = pruned(folder, spec, {name: laid_out(tensor) for name, tensor in state.items()}, "taylor-fo")
    content = found.files[0].read_bytes()
    for path in found.files:
        path.unlink()
    plain = pruned(folder, spec, state, "taylor-fo")
    assert kept_units(found) == kept_units(plain)
    assert len(content) == len(plain.files[0].read_bytes())
    assert all(tensor.is_contiguous() for tensor in found.model.state_dict().values())


def test_tied_weights_stay_tied(folder: Path) -> None:
    spec = spec_in(folder, "tied")
    found = pruned(folder, spec, state_of(spec))
    loaded = prunecli.load(found.files[0], spec=spec)
    assert loaded.into.weight is loaded.out.weight
    assert loaded.into.weight.shape == (6, 16)


def dead(state: dict[str, Tensor]) -> None:
    """Let no ReLU behind the first layer ever be on."""
    state["1.weight"].zero_()
    state["1.bias"].fill_(-1)


def constant(state: dict[str, Tensor]) -> None:
    """Let what a normalisation has seen never vary."""
    state["1.running_var"].zero_()


def silent(state: dict[str, Tensor]) -> None:
    """Let a whole layer put out zero."""
    for name, tensor in state.items():
        if name.startswith("3."):
            tensor.zero_()


@pytest.mark.parametrize("change", (dead, constant, silent))
@pytest.mark.parametrize("method", ("magnitude", "taylor-fo", "fpgm"))
def test_constant_and_dead_units_are_pruned_and_proven(
    change: Callable[[dict[str, Tensor]], None], method: str, folder: Path
) -> None:
    spec = spec_in(folder)
    state = state_of(spec)
    change(state)
    found = pruned(folder, spec, state, method)
    assert all(check.error <= check.bound for check in found.report.parity)
    assert output_of(found.model).isfinite().all()


def as_quantised(weight: Tensor) -> Tensor:
    return (weight * 100).to(torch.int8)


def with_nan(tensor: Tensor) -> Tensor:
    broken = tensor.clone()
    broken.view(-1)[0] = torch.nan
    return broken


WEIGHTS = {
    "int8": (
        "3.weight",
        as_quantised,
        "`3.weight` is int8, but the model's is float32. Quantised checkpoints",
    ),
    "float8": ("3.weight", lambda weight: weight.to(torch.float8_e4m3fn), "`3.weight` is quantised, which"),
    "nan": ("3.weight", with_nan, "`3.weight` holds a value that is not finite"),
    "range": (
        "3.weight",
        lambda weight: weight.double() * 1e300,
        "and the model is float32, which ends at 3.4e+38. Let the spec build it in float64.",
    ),
    "inf": ("1.running_var", lambda tensor: tensor / 0, "`1.running_var` holds 8 values that are not finite"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_no_numbers_to_work_with_are_refused_by_name(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, change, message = WEIGHTS[case]
    spec = spec_in(folder)
    state = state_of(spec)
    torch.save({**state, name: change(state[name])}, folder / "net.pt")
    assert run([*command(folder, spec), "--no-onnx"]) == 4
    assert_refused(folder, capsys, message)


def command(folder: Path, spec: Path, *more: str) -> list[str]:
    words = ["prune", str(folder / "net.pt"), "--spec", str(spec), "--keep", "0.5", "--device", "cpu"]
    return [*words, "--out", str(folder / "out"), "-q", *more]


def assert_refused(folder: Path, capsys: pytest.CaptureFixture[str], message: str) -> None:
    """Check that there is one line of error, and no file."""
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(said) == 1
    assert message in said[0]
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("method", "code", "message"),
    (
        ("taylor-fo", 5, "Micro-batch 0 (inputs [64, 1, 4, 4]): the loss is nan. `2` (Log) is the first to"),
        ("taylor-so", 5, "the loss is nan. `2` (Log) is the first to put out NaN. Check the normalisation"),
        ("magnitude", 6, "the dense model is not finite on samples that are made up. `2` (Log) is the first"),
    ),
)
def test_a_network_that_makes_nan_of_some_inputs_is_told_by_its_layer(
    method: str, code: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_in(folder, args='middle = "Log"')
    torch.save(state_of(spec), folder / "net.pt")
    assert run(command(folder, spec, "--method", method, "--no-onnx")) == code
    assert_refused(folder, capsys, message)


def test_weights_that_overflow_are_told_by_their_layer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_in(folder)
    state = state_of(spec)
    torch.save(
        {**state, "3.weight": state["3.weight"] * 1e38, "6.weight": state["6.weight"] * 1e38},
        folder / "net.pt",
    )
    assert run(command(folder, spec, "--method", "taylor-fo", "--no-onnx")) == 5
    assert_refused(folder, capsys, "is the first to put out infinity. Check the normalisation of the data")


def test_training_that_diverges_names_the_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_in(folder)
    torch.save(state_of(spec), folder / "net.pt")
    words = ["finetune", str(folder / "net.pt"), "--spec", str(spec), "--out", str(folder / "out"), "-q"]
    more = [
        "--train-data",
        "random:256",
        "--lr",
        "1e30",
        "--batch-size",
        "16",
        "--epochs",
        "2",
        "--device",
        "cpu",
    ]
    assert run([*words, *more, "--no-onnx"]) == 4
    said = capsys.readouterr().err
    assert re.search(
        r"The loss became \S+ in epoch 1, minibatch \d+\. `\d` \(\w+\) is the first to put out", said
    )
    assert not list((folder / "out").glob("*.safetensors"))


@pytest.mark.parametrize("broken", (torch.nan, torch.inf))
def test_a_pruned_file_that_was_broken_later_is_refused(
    broken: float, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_in(folder)
    found = pruned(folder, spec, state_of(spec))
    path = found.files[0]
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state["3.weight"][0, 0, 0, 0] = broken
    save_file(state, path, metadata)
    assert (
        run(["export", str(path), "--spec", str(spec), "--safetensors", str(folder / "a.safetensors")]) == 4
    )
    assert "`3.weight` holds a value that is not finite" in capsys.readouterr().err
    assert not (folder / "a.safetensors").exists()
