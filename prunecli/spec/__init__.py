"""How to build, feed and check a model, as plain data: TOML, command-line text or JSON -> ModelSpec."""

from prunecli.spec.discovery import find_spec, override, read_spec
from prunecli.spec.model_spec import DataSpec, InputSpec, Metric, ModelSpec, Normalize, Target, TaskSpec
from prunecli.spec.tables import from_json_dict, to_json_dict

__all__ = [
    "DataSpec",
    "InputSpec",
    "Metric",
    "ModelSpec",
    "Normalize",
    "Target",
    "TaskSpec",
    "find_spec",
    "from_json_dict",
    "override",
    "read_spec",
    "to_json_dict",
]
