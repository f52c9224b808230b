"""Makers of hostile files: what a careful program would never write."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save

from tests.hostile.seeds import PICTURES, TINY_BERT, weights

Files = Mapping[str, bytes]
ESCAPE = "\x1b[2J\x1b[31mowned"
DEEP = b'{"a":' * 100_000
CODES = (
    b"\x80\x02"
    + b"c_codecs\nencode\n" * 41
    + b"X\x04\0\0\0abcdX\x06\0\0\0latin1\x86R"
    + b"X\x03\0\0\0hex\x86R" * 40
    + b"."
)
"""A pickle that makes a terabyte of four letters, twice as much at each turn."""

SAME = (
    b"]("
    + b"G?\xf0\0\0\0\0\0\0" * 100
    + b"e"
    + b"".join(b"q%c](" % n + b"h%c" % n * 100 + b"e" for n in range(5))
)
"""Lists of a hundred lists, five levels deep; each level is one list, put in a hundred times."""


def tensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with such a header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    """Return what a header says of a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def saved(content: object, **options: Any) -> bytes:
    """Return what `torch.save` writes."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def zipped(members: Files, kind: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def with_pickle(content: bytes) -> bytes:
    """Return a checkpoint of which the pickle is this."""
    return zipped({"a/data.pkl": content, "a/version": b"3", "a/byteorder": b"little"})


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> bytes:
    """Return the checkpoint with one tensor changed."""
    own = weights()
    return saved(own | {name: change(own[name])})


def filled(value: float) -> bytes:
    """Return the checkpoint with a value that is no number of a trained model."""
    return changed("0.weight", lambda tensor: torch.full_like(tensor, value))


def pruned(**fields: object) -> bytes:
    """Return a file that says of itself that it was pruned."""
    record = {"format": 1, "spec": {"model": {"factory": "net.py:net"}, "input": [{"shape": [4]}]}, **fields}
    return save(weights(), {"prunecli": json.dumps(record)})


def naming(factory: str, shape: tuple[int, ...] = (4,), **args: object) -> bytes:
    """Return a file of which the spec inside names such a factory."""
    return pruned(spec={"model": {"factory": factory, "args": args}, "input": [{"shape": list(shape)}]})


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this code was run",)


def itself() -> bytes:
    """Return a dict that holds itself, and another that holds a model."""
    inner: dict[str, Any] = {"weights": {"x": {"y": {"z": {"u": {"v": weights()}}}}}}
    inner["model"] = inner
    return saved(inner)


def many_ways() -> bytes:
    """Return dicts inside dicts, each a hundred times: ten thousand million ways lead through them."""
    level: dict[str, Any] = {"epoch": 3}
    for _ in range(6):
        level = {f"k{i}": level for i in range(100)}
    return saved(level)


def graph(nodes: list[Any], shape: tuple[int, ...] = (1, 4), constants: tuple[Any, ...] = ()) -> bytes:
    """Return an ONNX file."""
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, ["n", "m"])],
        list(constants),
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def functions(count: int, calls: Callable[[int], Iterable[int]]) -> bytes:
    """Return an ONNX file with functions of which each calls those of some other numbers; of others, none."""
    opsets = [helper.make_opsetid("d", 1), helper.make_opsetid("", 18)]

    def body(number: int) -> list[Any]:
        values = [f"{name}{number}" for name in "xyz"]
        known = [other for other in calls(number) if other < count]
        names = ["x", *values[: max(len(known) - 1, 0)], "y"]
        chain = [(f"F{other}", "d") for other in known] or [("Relu", "")]
        return [
            helper.make_node(kind, [names[i]], [names[i + 1]], domain=domain)
            for i, (kind, domain) in enumerate(chain)
        ]

    made = [helper.make_function("d", f"F{i}", ["x"], ["y"], body(i), opsets) for i in range(count)]
    model = onnx.load_from_string(graph([helper.make_node("F0", ["x"], ["y"], domain="d")]))
    model.opset_import.add(domain="d", version=1)
    model.functions.extend(made)
    content: bytes = model.SerializeToString()
    return content


def loop() -> bytes:
    """Return an ONNX file that hardly ever ends."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Neg", ["v"], ["w"])],
        "b",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("v", 1, None)],
        [value("d", TensorProto.BOOL, []), value("w", 1, None)],
    )
    constants = (
        onnx.numpy_helper.from_array(np.array(10**18), "often"),
        onnx.numpy_helper.from_array(np.array(True), "on"),
    )
    return graph([helper.make_node("Loop", ["often", "on", "x"], ["y"], body=body)], constants=constants)


def toml(text: str) -> bytes:
    """Return a spec with such lines about its input."""
    return f'[model]\nfactory = "net.py:net"\n[input]\nshape = [4]\n{text}\n'.encode()


def folder_of(**config: object) -> Files:
    """Return a folder of Hugging Face: a tiny network, with a configuration that may say otherwise."""
    return {"config.json": json.dumps(TINY_BERT | config).encode(), "model.safetensors": save(weights())}


def array(header: str, data: bytes = b"") -> bytes:
    """Return an array of NumPy that says this of itself."""
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def npz(images: bytes) -> bytes:
    """Return an archive with such pictures."""
    return zipped({"images.npy": images})


def png(width: int, height: int) -> bytes:
    """Return a picture that says that it is of this size."""
    parts = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT1234", b"IEND")
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def pictures(content: bytes) -> Files:
    """Return a folder with one picture, and a spec of a network for it."""
    return {
        "net.py": PICTURES.encode(),
        "net.toml": b'[model]\nfactory = "net.py:net"\n[input]\nshape = [3, 8, 8]\n',
        "pictures/x/a.png": content,
    }


def idx(*shape: int, data: bytes = b"", kind: int = 8) -> bytes:
    """Return a file of the kind that MNIST comes in."""
    sizes = b"".join(size.to_bytes(4, "big") for size in shape)
    return bytes([0, 0, kind, len(shape)]) + sizes + data


def bomb() -> bytes:
    """Return an archive that says that 2 GiB come out of it."""
    return npz(bytes(12345)).replace(struct.pack("<I", 12345), struct.pack("<I", 2**31))


def report(**fields: object) -> bytes:
    """Return a report of an older hand, with such fields."""
    return json.dumps({"version": 1, **fields}).encode()


def plan(**fields: object) -> bytes:
    """Return a plan for the network."""
    own = {
        "format": "prunecli.plan",
        "version": 1,
        "method": "magnitude",
        "groups": {"0": {"width": 6, "keep": [0, 1]}},
    }
    return json.dumps(own | fields).encode()


def scores(header: object, values: torch.Tensor) -> bytes:
    """Return a file of scores."""
    return save({"0": values}, {"prunecli.scores": json.dumps(header)})


def nest(depth: int) -> bytes:
    """Return branches inside branches, which take twice as long with each if each is looked at by itself."""
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "b", [], [value])
    leaf = body
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=leaf)
        body = helper.make_graph([node], "b", [], [value])
    flag = onnx.numpy_helper.from_array(np.array(True), "c")
    return graph(list(body.node), constants=(flag,))
