"""Make PyTorch networks physically smaller, and prove it.

The story, in data:

    spec + checkpoint -> model -> groups -> scores -> plan -> smaller model -> proof -> files and report

Each name below is one step of it. They are loaded when they are first used, so that importing the
package never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunecli.budget import make_plan as make_plan
    from prunecli.checkpoint import load_model as load_model
    from prunecli.export.to_safetensors import load as load
    from prunecli.export.to_safetensors import save as save
    from prunecli.graph.groups import find_groups as find_groups
    from prunecli.importance.engine import score as score
    from prunecli.parity import verify as verify
    from prunecli.recovery import reconstruct as reconstruct
    from prunecli.report import compare as compare
    from prunecli.spec import read_spec as read_spec
    from prunecli.surgery import apply_plan as apply_plan

__version__ = "0.1.0"

_HOMES = {
    "read_spec": "prunecli.spec",
    "load_model": "prunecli.checkpoint",
    "find_groups": "prunecli.graph.groups",
    "score": "prunecli.importance.engine",
    "make_plan": "prunecli.budget",
    "apply_plan": "prunecli.surgery",
    "verify": "prunecli.parity",
    "reconstruct": "prunecli.recovery",
    "save": "prunecli.export.to_safetensors",
    "load": "prunecli.export.to_safetensors",
    "compare": "prunecli.report",
}

__all__ = [
    "apply_plan",
    "compare",
    "find_groups",
    "load",
    "load_model",
    "make_plan",
    "read_spec",
    "reconstruct",
    "save",
    "score",
    "verify",
]


def __getattr__(name: str) -> object:
    """Load a name of the front door when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module `prunecli` has no attribute `{name}`")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
