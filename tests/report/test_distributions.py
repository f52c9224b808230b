"""How scores are spread: ranks over the whole network, before and after units left."""

from __future__ import annotations

import numpy as np
import pytest

from prunecli.report.distributions import Box, score_facts

SCORES = {"conv": np.array([5.0, 1.0, 3.0, 3.0]), "fc": np.array([0.5, 9.0])}


def test_ranks_run_over_all_groups_and_ties_share_theirs() -> None:
    facts = score_facts("taylor-fo", SCORES, {"conv": (0, 2), "fc": ()})
    # in order: 0.5 fc, 1 conv, 3 conv, 3 conv, 5 conv, 9 fc -> ranks 1, 2, 3.5, 3.5, 5, 6
    conv, fc = facts.groups
    assert (facts.units, conv.units, conv.kept, fc.kept) == (6, 4, 2, 0)
    assert conv.ranks == Box(2, 3.125, 3.5, 3.875, 5)
    assert conv.kept_ranks == Box(3.5, 3.875, 4.25, 4.625, 5)
    assert conv.scores == Box(1, 2.5, 3, 3.5, 5)
    assert (fc.ranks.low, fc.ranks.high) == (1, 6)
    assert fc.kept_ranks is fc.kept_scores is None


def test_a_group_that_no_plan_names_keeps_all() -> None:
    facts = score_facts("magnitude", SCORES, {})
    assert [group.kept_ranks == group.ranks for group in facts.groups] == [True, True]


def test_no_groups_no_boxes() -> None:
    assert score_facts("magnitude", {}, {}).groups == ()


def test_every_rank_is_given_once() -> None:
    generator = np.random.default_rng(0)
    scores = {str(i): generator.random(8) for i in range(5)}
    facts = score_facts("random", scores, {name: range(8) for name in scores})
    assert min(group.ranks.low for group in facts.groups) == 1
    assert max(group.ranks.high for group in facts.groups) == 40
    assert sum(group.ranks.median for group in facts.groups) == pytest.approx(5 * 20.5, rel=0.4)
