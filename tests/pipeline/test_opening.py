"""A model that was opened: what is left of it when its weights are let go of."""

from __future__ import annotations

from prunecli.pipeline.listener import Silent
from prunecli.pipeline.opening import open_new
from prunecli.pipeline.settings import Samples, Source


def test_what_is_known_of_a_model_outlives_its_weights() -> None:
    opened = open_new(Source(spec="torchvision:squeezenet1_1"), Samples(), 0, Silent())
    structure, example, model = opened.structure, opened.example, opened.model
    opened.forget_weights()
    assert all(each.is_meta for each in opened.model.parameters())
    assert opened.structure is structure
    assert opened.example is example
    assert sum(layer.params for layer in opened.facts.layers) == sum(p.numel() for p in model.parameters())
    assert not any(each.is_meta for each in model.parameters())
