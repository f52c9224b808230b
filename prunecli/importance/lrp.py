"""`lrp`: how much of the true class's logit comes through a unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunecli.errors import ScoreError
from prunecli.graph.calls import following
from prunecli.graph.structure import CallKey, Group, Member, Site, SiteKind
from prunecli.graph.trace import plain_kernels
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.fold import by_unit
from prunecli.importance.gates import gate_sites, refuse_ungated
from prunecli.importance.gradients import call_model, explained
from prunecli.importance.readings import sum_elsewhere
from prunecli.importance.registry import Needs, method
from prunecli.importance.relevance import Relevance
from prunecli.importance.undisturbed import require_gradients


@method(
    "lrp",
    needs=Needs.ACTIVATIONS | Needs.LABELS,
    passes="1",
    source="Yeom et al., 2021, z+ rule (Bach et al., 2015)",
)
class LRP:
    """Relevance of each unit for the logit of the true class, by layer-wise relevance propagation.

    score = (sum over samples b and places p of |R_bp|) / (the same, summed over the units of the group),
    with R the relevance where the unit is made, its normalisation behind it. It starts as the value of
    the logit of each sample's label, 0 at the other logits, and is handed back layer by layer.

    Layers hand it back by the z+ rule (alpha = 1, beta = 0): R_i = sum over j of R_j (x_i w_ij)+ / sum
    over k of (x_k w_kj)+. Biases take no share, and relevance is lost only where nothing else is
    positive. Activation functions, dropout, and what only moves values hand back what they get; max
    pooling gives it to the largest;
    averages and additions share it out in proportion to what points the same way as their result. A
    batch normalisation is part of the layer before it: gamma's size cancels in the z+ rule, a negative
    gamma turns the signs of w round; behind anything else it hands back what it gets. Functions
    without a rule (attention, products of activations, other normalisations) are refused by name.

    Units that several layers make (residual stages) count with the sum over these layers.
    """

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return nothing: relevance is read, not parameters."""
        return ()

    def refuse(self, group: Group) -> str | None:
        """Refuse units that no call puts out."""
        if any(site.kind is SiteKind.MADE and site.operand is not None for site in gate_sites(group)):
            return "is made by a parameter that is added by itself: relevance does not go there"
        return refuse_ungated(group)

    def observe(self, batch: Observed) -> State:
        """Return the sums of |R| over one micro-batch."""
        look = batch.looked
        found = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in batch.groups}
        sites: dict[CallKey, list[tuple[Group, Site]]] = {}
        for group in batch.groups:
            for site in gate_sites(group):
                sites.setdefault(site.call, []).append((group, site))

        def hear(group: Group, site: Site, relevance: Tensor) -> None:
            sums = sum_elsewhere(relevance.detach().abs(), site.dim)
            found[group.name] += by_unit(sums, group, site).cpu()

        model = look.conditions.model
        require_gradients(model, [])
        with explained(look.where), torch.enable_grad(), plain_kernels():
            with following(model) as modules, Relevance(modules, sites, hear) as watch:
                output = call_model(model, look.batch)
            start = _at_true_class(output, look.batch.targets, look.where)
            if output.requires_grad:
                torch.autograd.grad(output, watch.starts, start, allow_unused=True)
        return State(found)

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the sums, each layer divided by its own."""
        return {name: values / (values.sum() or 1.0) for name, values in total.values.items()}


def _at_true_class(output: Any, targets: Any, where: str) -> Tensor:
    """Return the logits of the labels, and 0 for all other classes.

    Raises:
        ScoreError: The model does not classify, or there are no labels.
    """
    fits = isinstance(output, Tensor) and isinstance(targets, Tensor) and not targets.is_floating_point()
    if not fits or output.dim() != targets.dim() + 1 or output[:, 0].shape != targets.shape:
        raise ScoreError(
            f"{where}: `lrp` starts at the logit of the true class. It takes one output "
            "[samples, classes, ...] and the number of a class per sample; use another method, such as "
            "`taylor-fo`."
        )
    index = targets.unsqueeze(1)
    return torch.zeros_like(output).scatter(1, index, output.detach().gather(1, index))
