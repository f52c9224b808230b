"""Operations on the last, spatial dimensions: pooling, resizing, padding. The others are carried."""

from __future__ import annotations

import numpy as np

from prunecli.graph.call import Call, rule_for
from prunecli.graph.constraints import Label

SPATIAL_DIMS = {
    "max_pool2d_with_indices": 2, "max_pool3d_with_indices": 3, "max_pool2d": 2, "max_pool3d": 3,
    "avg_pool1d": 1, "avg_pool2d": 2, "avg_pool3d": 3, "adaptive_avg_pool1d": 1, "adaptive_max_pool1d": 1,
    "_adaptive_avg_pool2d": 2, "_adaptive_avg_pool3d": 3, "adaptive_max_pool2d": 2, "adaptive_max_pool3d": 3,
    "fractional_max_pool2d": 2, "max_unpool2d": 2, "mkldnn_max_pool2d": 2,
    "upsample_nearest1d": 1, "upsample_nearest2d": 2, "upsample_nearest3d": 3, "_upsample_nearest_exact1d": 1,
    "_upsample_nearest_exact2d": 2, "_upsample_nearest_exact3d": 3, "upsample_linear1d": 1,
    "upsample_bilinear2d": 2, "_upsample_bilinear2d_aa": 2, "upsample_bicubic2d": 2,
    "_upsample_bicubic2d_aa": 2,
    "upsample_trilinear3d": 3, "reflection_pad1d": 1, "reflection_pad2d": 2, "reflection_pad3d": 3,
    "replication_pad1d": 1, "replication_pad2d": 2, "replication_pad3d": 3,
    "grid_sampler_2d": 2, "grid_sampler_3d": 3,
}  # fmt: skip
"""Operation -> how many trailing dimensions it works on."""


@rule_for(*SPATIAL_DIMS)
def spatial(call: Call) -> None:
    """Carry the leading dimensions; places in the image belong to nothing."""
    source, *others = call.operands
    count = SPATIAL_DIMS[call.name]
    labels = call.labels(source)
    for label in (*labels[-count:], *(label for other in others for label in call.labels(other))):
        call.freeze(label, "is a place in the image", expected=True)
    for result in call.results():
        call.put((*labels[:-count], *(None,) * count), tensor=result)


@rule_for("constant_pad_nd", takes_size=True)
def pad(call: Call) -> None:
    """Pad: new positions along a labelled dimension can never go; elsewhere padding changes nothing."""
    source = call.operands[0]
    labels = list(call.labels(source))
    widths = call.argument("pad")
    for index in range(len(widths) // 2):
        dim = source.dim() - 1 - index
        label = labels[dim]
        if isinstance(label, np.ndarray) and min(widths[2 * index], widths[2 * index + 1]) < 0:
            call.freeze(label, "is cropped by a fixed number of positions")
        labels[dim] = _padded(call, label, widths[2 * index], widths[2 * index + 1])
    call.put(labels)


@rule_for("im2col")
def im2col(call: Call) -> None:
    """Unfold an image into columns: each channel becomes one position per place of the kernel."""
    source = call.operands[0]
    labels = call.labels(source)
    channels = labels[-3]
    for label in labels[-2:]:
        call.freeze(label, "is a place in the image", expected=True)
    if isinstance(channels, np.ndarray):
        channels = np.repeat(channels, call.out.shape[-2] // channels.size)
    call.put((*labels[:-3], channels, None))


@rule_for("col2im")
def col2im(call: Call) -> None:
    """Fold columns into an image: the places of the kernel are summed."""
    source = call.operands[0]
    labels = call.labels(source)
    columns, channels = labels[-2], None
    if isinstance(columns, np.ndarray):
        channel_count = call.out.shape[-3]
        channels, kernel = call.split(columns, (channel_count, columns.size // channel_count))
        call.freeze(kernel, "is a place in the kernel", expected=True)
    call.put((*labels[:-2], channels, None, None))


def _padded(call: Call, label: Label, before: int, after: int) -> Label:
    if not isinstance(label, np.ndarray):
        return label if before == after == 0 else None
    label = label[max(-before, 0) : label.size - max(-after, 0)]
    added = call.tracer.constraints.fresh(max(before, 0) + max(after, 0))
    call.freeze(added, "is joined to positions that padding adds")
    return np.concatenate([added[: max(before, 0)], label, added[max(before, 0) :]])
