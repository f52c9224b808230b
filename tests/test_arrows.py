"""The folder reads in the order the data flows: a file imports only what stands to its left."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "prunecli"
ORDER = (
    ("errors",),
    ("strict_json", "arguments", "whole_file", "memory"),
    ("named", "peers"),
    ("spec", "growth", "on_demand", "give_back"),
    ("model", "checkpoint", "data", "architectures"),
    ("graph",),
    ("importance",),
    ("plan", "budget", "recipe", "history"),
    ("weights",),
    ("surgery",),
    ("parity", "recovery"),
    ("training",),
    ("export", "costs", "report"),
    ("pipeline",),
    ("cli",),
)
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}
FRONT_DOOR = ("__init__", "__main__")
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
WITHOUT_TORCH = (
    "errors.",
    "strict_json.",
    "arguments.",
    "whole_file.",
    "memory.",
    "named.",
    "spec/",
    "plan.",
    "budget/",
    "report/",
    "recipe.",
    "history.",
    "graph/structure.",
    "pipeline/settings.",
    "pipeline/report_settings.",
)
ONLY_IN = {
    "typer": lambda file: file.startswith("cli/"),
    "click": lambda file: False,
    "rich": lambda file: file.startswith("cli/"),
    "onnx": lambda file: (
        file in ("export/to_onnx.py", "export/onnx_weights.py", "export/from_onnx.py", "export/onnx_facts.py")
    ),
    "onnxruntime": lambda file: file in ("export/to_onnx.py", "export/from_onnx.py"),
    "onnxscript": lambda file: file == "export/onnx_weights.py",
    "sklearn": lambda file: False,
}
METHODS = {
    path.stem
    for path in (PACKAGE / "importance").glob("*.py")
    if "\n@method(" in path.read_text(encoding="utf-8")
}


def imports(file: str) -> set[str]:
    """Return the dotted names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(dotted: str) -> str | None:
    """Return which part of prunecli a dotted name belongs to; None for other packages and the front door."""
    package, _, rest = dotted.partition(".")
    part = rest.split(".")[0]
    return part if package == "prunecli" and part in RANK else None


def test_every_file_has_its_place() -> None:
    parts = {Path(file).parts[0].removesuffix(".py") for file in FILES}
    assert parts <= set(RANK) | set(FRONT_DOOR)


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_stands_to_its_left(file: str) -> None:
    part = Path(file).parts[0].removesuffix(".py")
    rank = RANK.get(part, len(ORDER))
    wrong = {name for name in imports(file) if (found := part_of(name)) and RANK[found] > rank}
    assert not wrong


def test_parts_of_one_rank_do_not_import_each_other_both_ways() -> None:
    needs: dict[str, set[str]] = {part: set() for part in RANK}
    for file in FILES:
        part = Path(file).parts[0].removesuffix(".py")
        if part in needs:
            needs[part] |= {found for name in imports(file) if (found := part_of(name)) and found != part}
    assert len(list(TopologicalSorter(needs).static_order())) == len(needs)  # raises CycleError otherwise


@pytest.mark.parametrize("file", FILES)
def test_only_the_edge_imports_third_parties(file: str) -> None:
    found = {name.split(".")[0] for name in imports(file)}
    assert not {name for name in found & set(ONLY_IN) if not ONLY_IN[name](file)}


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith(WITHOUT_TORCH)])
def test_values_need_no_torch(file: str) -> None:
    assert not {name for name in imports(file) if name.split(".")[0] == "torch"}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_imports_no_other_method(method: str) -> None:
    parts = [name.split(".") for name in imports(f"importance/{method}.py") if "importance." in name]
    assert not {part[2] for part in parts} & METHODS


def test_only_the_package_imports_methods() -> None:
    named = ((file, name.split(".")) for file in FILES for name in imports(file) if ".importance." in name)
    importing = {file for file, parts in named if set(parts) & METHODS}
    assert importing == {"importance/__init__.py"}


def test_no_file_is_a_drawer() -> None:
    assert not {Path(file).stem for file in FILES} & {"utils", "common", "helpers", "types", "misc"}
