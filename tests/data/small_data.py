"""Six small images, their labels, and a spec of their shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prunecli.spec import InputSpec, ModelSpec

IMAGES = np.arange(6 * 2 * 3 * 4, dtype=np.uint8).reshape(6, 2, 3, 4)
LABELS = np.arange(6, dtype=np.uint8)


def spec_of(*shape: int, base: Path = Path(), **options: Any) -> ModelSpec:
    return ModelSpec("torchvision:resnet18", inputs=(InputSpec(shape, **options),), base=base)
