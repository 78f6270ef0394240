"""Which rule each operation follows, by its name in PyTorch's ATen library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgestill.lab.inherit import arithmetic, reshaping

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.lab.inherit.calls import Context

_NAMES: Final[dict[Callable[[Context], None], str]] = {
    arithmetic.same: "clone detach alias _to_copy lift_fresh contiguous hardswish"
    " zeros_like ones_like full_like empty_like fill zero",
    arithmetic.running: "cumsum",
    arithmetic.share: "_softmax _log_softmax _safe_softmax",
    arithmetic.made: "zeros ones full empty new_zeros new_ones new_full new_empty",
    arithmetic.pointwise: "copy _prelu_kernel log_sigmoid_forward native_dropout bernoulli rrelu_with_noise",
    arithmetic.contract: "mm bmm addmm baddbmm",
    arithmetic.vector: "mv dot",
    arithmetic.convolve: "convolution",
    arithmetic.normalise_batch: "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit"
    " _batch_norm_no_update _batch_norm_with_update cudnn_batch_norm miopen_batch_norm",
    arithmetic.normalise_layer: "native_layer_norm _fused_rms_norm",
    arithmetic.normalise_group: "native_group_norm",
    arithmetic.look_up: "embedding _embedding_bag _embedding_bag_forward_only",
    arithmetic.gate: "glu",
    arithmetic.spatial: "max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d _adaptive_avg_pool2d"
    " _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d"
    " upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d"
    " upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d"
    " reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
    arithmetic.reduce: "mean sum amax amin var std logsumexp linalg_vector_norm norm any all prod",
    arithmetic.reduce_by_position: "argmax argmin max min",
    arithmetic.triangle: "tril triu",
    reshaping.view: "view _unsafe_view reshape _reshape_alias",
    reshaping.permute: "permute",
    reshaping.transpose: "transpose t",
    reshaping.squeeze: "squeeze",
    reshaping.unsqueeze: "unsqueeze",
    reshaping.expand: "expand",
    reshaping.repeat: "repeat",
    reshaping.restride: "as_strided",
    reshaping.slice_: "slice narrow",
    reshaping.select: "select",
    reshaping.part: "split split_with_sizes unsafe_split unsafe_split_with_sizes unsafe_chunk chunk",
    reshaping.unbind: "unbind",
    reshaping.concatenate: "cat",
    reshaping.stack: "stack",
    reshaping.pad: "constant_pad_nd",
    reshaping.pick: "index",
    reshaping.by_position: "flip index_select",
    reshaping.roll: "roll",
    reshaping.shuffle_pixels: "pixel_shuffle",
    reshaping.shuffle_channels: "native_channel_shuffle channel_shuffle",
}
_RULES: Final = {name: rule for rule, names in _NAMES.items() for name in names.split()}


def rule_of(name: str) -> Callable[[Context], None]:
    """The rule of an operation, whether it works in place or not."""
    return _RULES.get(name) or _RULES.get(name.removesuffix("_")) or arithmetic.unknown
