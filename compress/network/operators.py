"""The table of rules: how channels pass through each ATen operator. An operator without one freezes what reaches it."""

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch

from kerf.compress.network.elementwise import constant, elementwise, normalise, pool, reduce, unary
from kerf.compress.network.labels import Call, Channels
from kerf.compress.network.layers import (
    batch_norm,
    conv,
    conv_transpose,
    embedding,
    group_norm,
    instance_norm,
    layer_norm,
    linear,
    prelu,
)
from kerf.compress.network.moves import (
    channel_shuffle,
    concatenate,
    divide,
    glu,
    like,
    move,
    pad,
    pixel_shuffle,
    pixel_unshuffle,
    shift,
    stack,
)

aten = torch.ops.aten
# these move their parameters along with the channels
LAYERS = (
    conv, conv_transpose, linear, batch_norm, instance_norm, group_norm, layer_norm, prelu, embedding,
)  # fmt: skip
READS_PARAMETERS = (*LAYERS, elementwise)


def _named(names: str) -> Iterable[Any]:
    """aten overloads, as "relu.default relu_.default"."""
    for name in names.split():
        packet, overload = name.split(".")
        yield getattr(getattr(aten, packet), overload)


RULES: dict[Any, Callable[[Call, Channels], Any]] = {
    **dict.fromkeys(_named("conv1d.default conv2d.default conv2d.padding conv1d.padding conv3d.default"), conv),
    **dict.fromkeys(_named("conv_transpose1d.default conv_transpose2d.input"), conv_transpose),
    aten.linear.default: linear,
    aten.batch_norm.default: batch_norm,
    aten.instance_norm.default: instance_norm,
    aten.group_norm.default: group_norm,
    aten.layer_norm.default: layer_norm,
    aten.prelu.default: prelu,
    aten.embedding.default: embedding,
    **dict.fromkeys(
        _named(
            "relu.default relu_.default hardtanh.default hardtanh_.default relu6.default leaky_relu.default "
            "leaky_relu_.default hardswish.default hardswish_.default hardsigmoid.default hardsigmoid_.default "
            "sigmoid.default sigmoid_.default silu.default silu_.default elu.default elu_.default celu.default "
            "selu.default softplus.default mish.default log_sigmoid.default hardshrink.default softshrink.default "
            "threshold.default clamp.default clamp_.default clamp_min.default clamp_max.default abs.default "
            "neg.default exp.default log.default sqrt.default rsqrt.default square.default sin.default cos.default "
            "sign.default floor.default round.default erf.default reciprocal.default log1p.default "
            "pow.Tensor_Scalar rsub.Scalar gt.Scalar lt.Scalar ge.Scalar le.Scalar eq.Scalar ne.Scalar "
            "feature_dropout.default alpha_dropout.default to.dtype type_as.default _assert_tensor_metadata.default "
            "gelu.default tanh.default dropout.default dropout_.default clone.default contiguous.default "
            "detach.default alias.default"
        ),
        unary,
    ),
    **dict.fromkeys(
        _named(
            "add.Tensor add_.Tensor sub.Tensor sub_.Tensor mul.Tensor mul_.Tensor div.Tensor div_.Tensor "
            "maximum.default minimum.default max.other min.other where.self masked_fill.Scalar addcmul.default "
            "gt.Tensor lt.Tensor"
        ),
        elementwise,
    ),
    **dict.fromkeys(
        _named(
            "max_pool1d.default max_pool2d.default avg_pool1d.default avg_pool2d.default adaptive_avg_pool1d.default "
            "adaptive_avg_pool2d.default adaptive_max_pool1d.default adaptive_max_pool2d.default "
            "upsample_nearest1d.vec upsample_linear1d.vec upsample_nearest2d.vec upsample_bilinear2d.vec "
            "upsample_bicubic2d.vec"
        ),
        pool,
    ),
    **dict.fromkeys(
        _named("mean.dim mean.default sum.dim_IntList sum.default amax.default amin.default max.dim logsumexp.default"),
        reduce(1),
    ),
    **dict.fromkeys(_named("var.dim std.dim var.correction std.correction"), reduce(1)),
    aten.linalg_vector_norm.default: reduce(2),
    **dict.fromkeys(_named("softmax.int log_softmax.int"), normalise),
    **dict.fromkeys(
        _named("zeros_like.default ones_like.default new_zeros.default zeros.default ones.default"), constant
    ),
    aten.pad.default: pad,
    aten.cat.default: concatenate,
    aten.stack.default: stack,
    aten.glu.default: glu,
    aten.pixel_shuffle.default: pixel_shuffle,
    aten.pixel_unshuffle.default: pixel_unshuffle,
    aten.channel_shuffle.default: channel_shuffle,
    aten.roll.default: shift(torch.roll),
    aten.flip.default: shift(torch.flip),
    aten.view.default: move(torch.reshape),  # labels are stride-0 views, which aten.view cannot join
    aten.reshape.default: move(torch.reshape),
    aten.view_as.default: like,
    aten.expand_as.default: like,
    operator.getitem: move(operator.getitem),
    **{
        op: move(op)
        for op in _named(
            "flatten.using_ints transpose.int permute.default unsqueeze.default squeeze.dim squeeze.dims "
            "squeeze.default expand.default unflatten.int swapaxes.default movedim.int mT.default repeat.default "
            "tile.default repeat_interleave.self_int"
        )
    },
    **{
        op: divide(op)
        for op in _named(
            "slice.Tensor select.int narrow.default chunk.default split.Tensor split_with_sizes.default unbind.int"
        )
    },
}
