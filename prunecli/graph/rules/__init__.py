"""How each kind of ATen operation carries labels on. Importing this package fills `call.RULES`."""

from prunecli.graph.rules import (
    contractions,
    indexing,
    normalisations,
    pieces,
    pointwise,
    reductions,
    spatial,
    views,
)

__all__ = [
    "contractions",
    "indexing",
    "normalisations",
    "pieces",
    "pointwise",
    "reductions",
    "spatial",
    "views",
]
