"""What `import prunecli` offers: the story, and nothing else."""

from __future__ import annotations

import pytest

import prunecli


def test_all_names_are_there() -> None:
    assert all(callable(getattr(prunecli, name)) for name in prunecli.__all__)


def test_all_is_the_story() -> None:
    story = "read_spec load_model find_groups score make_plan apply_plan verify reconstruct save load compare"
    assert set(prunecli.__all__) == set(story.split())


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute `prune_it`"):
        prunecli.prune_it  # noqa: B018
