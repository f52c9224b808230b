"""A tiny network, and every kind of file that is made of it or read beside it: what fuzzers damage."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save

from prunecli.cli.main import run

MODEL = """
from torch import nn


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
"""
SPEC = """
[model]
factory = "net.py:net"
[input]
shape = [4]
[data]
sample = "npz:data.npz#train"
train = "npz:data.npz#train"
test = "npz:data.npz#train"
[task]
loss = "cross-entropy"
metric = "top1"
"""

PICTURES = """
from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
"""

SECRETS = {
    **dict.fromkeys(("LOGNAME", "USER", "LNAME", "USERNAME"), "somebody-with-a-long-name"),
    "API_TOKEN": "hunter2-of-the-environment",
}
"""Variables of the environment while the seeds grow, of which no file may tell."""

TINY_BERT = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 16,
}
CONFIGURATION = {**TINY_BERT, "id2label": {"0": "a", "1": "b"}}


def weights() -> dict[str, torch.Tensor]:
    """Return the parameters of the network."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    return {name: tensor.detach() for name, tensor in net.named_parameters()}


def plant(folder: Path) -> None:
    """Write the network, its spec and its data, which all commands need."""
    (folder / "net.py").write_text(MODEL)
    (folder / "net.toml").write_text(SPEC)
    torch.save(weights(), folder / "net.pt")
    draw = np.random.default_rng(0)
    np.savez(
        folder / "data.npz",
        train_images=draw.standard_normal((8, 4), np.float32),
        train_labels=draw.integers(0, 3, 8),
    )


def _save_dcp(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no processes were started, which is meant so
        save({"model": weights()}, checkpoint_id=folder, no_dist=True)


def grow(folder: Path) -> dict[str, bytes]:
    """Return a valid file of each kind that is read: name -> content. Some are written by the program."""
    plant(folder)
    torch.save(weights(), folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(weights(), folder / "net.safetensors", {"format": "pt"})
    index: Mapping[str, Any] = {"weight_map": dict.fromkeys(weights(), "net.safetensors")}
    (folder / "net.safetensors.index.json").write_text(json.dumps(index))
    images = np.arange(8 * 4, dtype=np.uint8).tobytes()
    (folder / "images").write_bytes(
        b"\0\0\x08\x02" + (8).to_bytes(4, "big") + (4).to_bytes(4, "big") + images
    )
    (folder / "images.gz").write_bytes(gzip.compress((folder / "images").read_bytes(), mtime=0))
    (folder / "pictures" / "x").mkdir(parents=True)
    picture = Image.fromarray(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3))
    picture.save(folder / "pictures" / "x" / "0.png")
    picture.save(folder / "pictures" / "x" / "1.jpg")
    (folder / "config.json").write_text(json.dumps(CONFIGURATION))
    _save_dcp(folder / "dcp")
    common = ["--spec", str(folder / "net.toml"), "-q"]
    net = str(folder / "net.pt")
    prune = ["prune", net, "--keep", "0.5", "--method", "magnitude", "--plan", str(folder / "plan.json")]
    assert run([*prune, "--out", str(folder), *common]) == 0
    assert (
        run(["score", net, "--method", "magnitude", "--out", str(folder / "scores.safetensors"), *common])
        == 0
    )
    mask = ["prune", net, "--granularity", "weight", "--keep", "0.8", "--method", "magnitude", "--no-onnx"]
    assert run([*mask, "--out", str(folder / "net.masked.safetensors"), *common]) == 0
    sweep = ["sweep", net, "--method", "random", "--keep", "0.5", "--out", str(folder / "swept"), "--force"]
    assert run([*sweep, *common]) == 0
    train = ["finetune", net, "--epochs", "1", "--lr", "0.1", "--out", str(folder / "tuned"), "--no-onnx"]
    assert run([*train, *common]) == 0
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
