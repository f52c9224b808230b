"""What layers read -> Gram matrices of the columns that belong to units; weights cut into these, and back.

A column of a convolution is a channel as one tap of the kernel sees it (patches, unfolded), one of a linear
layer a place along its last dimension. Columns are ordered by unit, and each unit has as many: a column
of zeros stands in where one has fewer. A convolution in groups is one reader for each: its blocks read
different channels. A weight that is used twice has one Gram matrix, the sum of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from prunecli.errors import ScoreError
from prunecli.graph.structure import Group, Site, SiteKind, Structure
from prunecli.graph.twins import installed as twins_installed
from prunecli.importance.context import State
from prunecli.importance.fold import rows_by
from prunecli.importance.look import MEMORY, Conditions, Look, Seen, Tell
from prunecli.importance.micro_batches import Batch, micro_batches
from prunecli.importance.readings import as_taps_see, group_count, input_dim, read_at
from prunecli.importance.sparse_columns import Reader
from prunecli.importance.undisturbed import ScoreBN, undisturbed

_ENTRIES = 2**24
"""How many numbers a step may hold at once."""
_ROWS = 16384
"""Rows that are multiplied at a time in the working precision; their sums are in float64."""


class Place(NamedTuple):
    """Which units which part of which weight reads."""

    group: str
    weight: str
    block: int

    @property
    def key(self) -> str:
        """The place as a name in a state."""
        return "\t".join((self.group, self.weight, str(self.block)))

    @staticmethod
    def of(key: str) -> Place:
        """Return the place from its name."""
        group, weight, block = key.split("\t")
        return Place(group, weight, int(block))


@dataclass(frozen=True, eq=False)
class Read:
    """What one part of a weight reads of one group's units."""

    gram: Float64[Tensor, "columns columns"]
    weight: Float64[Tensor, "outputs width each"]

    @property
    def reader(self) -> Reader:
        """The same, with the unit of each column."""
        _, width, each = self.weight.shape
        return Reader(self.gram, self.weight.flatten(1), torch.arange(width).repeat_interleave(each))


def grams_of(look: Look, groups: Sequence[Group]) -> State:
    """Return, by `Place.key`, the Gram matrices of one micro-batch, and as maxima the weights.

    Raises:
        ScoreError: A layer reads a group in more columns than there is memory for.
    """
    grams: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}

    def add(seen: Seen) -> None:
        for group, site in read_at(seen, groups):
            blocks = group_count(seen) if seen.weight.dim() > 2 else 1
            for block, table in enumerate(_tables(group, site, blocks)):
                key = Place(group.name, site.tensors[0], block).key
                weight = _columns_of(_by_block(seen.weight, blocks, input_dim(seen))[block], table)
                room = look.conditions.memory - sum(each.nbytes for each in grams.values())
                _check_room(
                    group, site, weight[0].numel(), room if key not in grams else look.conditions.memory
                )
                gram = _gram_of(seen, site, table, blocks, block)
                grams[key] = grams[key] + gram if key in grams else gram
                weights[key] = weight.double().cpu()

    look.visit(SiteKind.READ, add)
    return State(grams, maxima=weights)


def read_by_group(state: State) -> dict[str, dict[Place, Read]]:
    """Return what `grams_of` found: by group, and by place."""
    found: dict[str, dict[Place, Read]] = {}
    for key, gram in state.values.items():
        place = Place.of(key)
        found.setdefault(place.group, {})[place] = Read(gram, state.maxima[key])
    return found


def collect(
    model: nn.Module,
    structure: Structure,
    groups: Sequence[Group],
    batches: Iterable[Batch],
    *,
    seed: int = 0,
    micro_batch: int = 64,
    memory: int = MEMORY,
    tell: Tell = lambda stage, done, total: None,
) -> tuple[dict[str, dict[Place, Read]], int]:
    """Run a model on a sample; return what layers read of the groups, and how many samples there were."""
    total: State | None = None
    samples = 0
    conditions = Conditions(model, tuple(groups), None, ScoreBN.EVAL, memory)
    device = next(model.parameters()).device
    with undisturbed(model, ScoreBN.EVAL, seed), twins_installed(model, structure.rewritten), torch.no_grad():
        for number, batch in enumerate(micro_batches(batches, micro_batch, device)):
            found = grams_of(Look(conditions, batch, number), groups)
            total = found if total is None else total.merged(found)
            samples += batch.samples
            tell("reading", number + 1, 0)
    return ({} if total is None else read_by_group(total)), samples


def with_columns(weight: Tensor, group: Group, site: Site, parts: Mapping[int, Tensor]) -> Tensor:
    """Return a weight with other columns for a group's units: the opposite of how `Read.weight` is made.

    Args:
        weight: As the layer has it.
        group: Whose columns.
        site: Where the layer reads them.
        parts: By block: [outputs, columns].
    """
    blocks, dim = len(parts), 0 if "transpose" in site.call.function else 1
    apart = _by_block(weight, blocks, dim).clone()
    for block, table in enumerate(_tables(group, site, blocks)):
        outputs, inputs, taps = apart[block].shape
        padded = torch.cat([apart[block], apart.new_zeros(outputs, 1, taps)], dim=1)
        padded[:, table.flatten()] = parts[block].reshape(outputs, -1, taps).to(padded)
        apart[block] = padded[:, :inputs]
    return (apart.transpose(1, 2) if dim == 0 else apart).reshape(weight.shape)


def holds_columns(weight: Tensor, group: Group, site: Site, parts: Mapping[int, Tensor]) -> bool:
    """Return whether these are the columns of a group in a weight: not so where a layer makes it anew."""
    blocks, dim = len(parts), 0 if "transpose" in site.call.function else 1
    outputs = next(iter(parts.values())).shape[0]
    inputs = weight.shape[dim] * (blocks if dim == 1 else 1) if weight.dim() > 1 else 0
    if inputs != site.length or weight.shape[1 - dim] != outputs * (blocks if dim == 1 else 1):
        return False
    same = with_columns(weight, group, site, {block: part.flatten(1) for block, part in parts.items()})
    return torch.equal(same, weight)


def _tables(group: Group, site: Site, blocks: int) -> Iterator[Tensor]:
    """Yield, for each block of a layer, which of its inputs belong to each unit; `inputs` stands for none."""
    inputs = site.length // blocks
    for block in range(blocks):
        here = site.positions // inputs == block
        positions = site.positions[here] - block * inputs
        yield torch.from_numpy(rows_by(site.units[here], positions, group.width, fill=inputs))


def _by_block(weight: Tensor, blocks: int, dim: int) -> Tensor:
    """Return the weight as [blocks, outputs, inputs, taps]."""
    apart = weight.reshape(blocks, weight.shape[0] // blocks, weight.shape[1], -1)
    return apart.transpose(1, 2) if dim == 0 else apart


def _columns_of(weight: Tensor, table: Tensor) -> Tensor:
    """Return the columns of the units: [outputs, inputs, taps] -> [outputs, width, each]."""
    outputs, _, taps = weight.shape
    padded = torch.cat([weight, weight.new_zeros(outputs, 1, taps)], dim=1)
    return padded[:, table.to(weight.device)].flatten(2)


def _gram_of(
    seen: Seen, site: Site, table: Tensor, blocks: int, block: int
) -> Float64[Tensor, "columns columns"]:
    """Return the sum over samples and places of the products of the columns."""
    dtype = torch.promote_types(seen.tensor.dtype, torch.float32)
    along = seen.tensor.to(dtype).movedim(site.dim, -1)
    along = along.unflatten(-1, (blocks, -1))[..., block, :]
    padded = torch.cat([along, along.new_zeros((*along.shape[:-1], 1))], dim=-1)
    columns = padded[..., table.flatten().to(padded.device)]
    if site.dim == -1:
        return _products([columns.flatten(0, -2)], columns.shape[-1])
    maps = columns.movedim(-1, site.dim)
    maps = maps if maps.dim() > -site.dim else maps[None]
    taps = seen.weight[0, 0].numel()
    step = max(_ENTRIES // (maps[0].numel() * taps), 1)
    return _products((_patches(seen, part) for part in maps.split(step)), maps.shape[1] * taps)


def _patches(seen: Seen, maps: Tensor) -> Tensor:
    """Return one row per sample and place: what each tap sees of each map, [samples * places, columns]."""
    exact = maps.double() if maps.device.type == "cuda" else maps  # convolutions there round float32 to tf32
    taps = as_taps_see(seen, exact.flatten(0, 1)).to(maps.dtype).unflatten(0, maps.shape[:2])
    by_place: Tensor = taps.flatten(1, 2).transpose(1, 2)
    return by_place.flatten(0, 1)


def _products(parts: Iterable[Tensor], columns: int) -> Float64[Tensor, "columns columns"]:
    """Return the sum of rows^T rows."""
    total = torch.zeros(columns, columns, dtype=torch.float64)
    for part in parts:
        for rows in part.split(_ROWS):
            total += (rows.T @ rows).cpu()
    return total


def _check_room(group: Group, site: Site, columns: int, room: int) -> None:
    wanted = 8 * columns**2
    if wanted > room:
        raise ScoreError(
            f"`{group.name}` is read by `{site.tensors[0]}` in {columns:,} columns: a matrix of "
            f"{wanted / 2**30:.1f} GiB, more than there is room for. Allow more by `--max-memory`, or use "
            "`i-spasp`, which needs no such matrix."
        )
