"""What a class of today expects of an instance, and a file of yesterday lacks or says in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import _reduction
from torch.nn.modules.loss import _Loss

from ..surgery.describing import sketch_of, torch_class

_LINEAR = ("linear", "bilinear", "bicubic", "trilinear")
_MADE_OF_OTHERS = (nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder, nn.AdaptiveLogSoftmaxWithLoss)
_HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, nn.DataParallel)
_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

State = dict[str, Any]


def prepared(cls: type[nn.Module], state: State) -> State:
    """The state of a file as `__setstate__` of today takes it.

    Raises:
        ValueError: it says of itself what its tensors do not bear out.
    """
    found = dict(state)
    for base, prepare in _BEFORE:
        if issubclass(cls, base):
            prepare(found)
    return found


def filled(module: nn.Module) -> None:
    """Give a restored module what its class has come to expect since the file was written."""
    cls = torch_class(type(module))
    if cls is None:
        return
    for base, fill in _AFTER:
        if issubclass(cls, base):
            fill(module)
    if not issubclass(cls, (*_MADE_OF_OTHERS, *_HOLDERS, *_LAYERS, nn.RNNBase)):
        fresh = sketch_of(module, cls)
        if fresh is not None:
            _as_in(module, fresh)


def _as_in(module: nn.Module, fresh: nn.Module) -> None:
    """What a fresh module of the class has, and this one lacks; tensors have no values there and stay away."""
    held = module.__dict__
    known = {*held, *module._parameters, *module._buffers, *module._modules}
    for key, value in vars(fresh).items():
        if key not in known:
            held[key] = value
    for key, parameter in fresh._parameters.items():
        if key not in known and parameter is None:
            module.register_parameter(key, None)
    for key, buffer in fresh._buffers.items():
        if key not in known and buffer is None:
            module.register_buffer(key, None)


# Before the state is set


def _recurrent(state: State) -> None:
    """The names of the weights by layer and direction, and the weights in that order, whatever the file has of it."""
    layers, proj = state.get("num_layers"), state.setdefault("proj_size", 0)
    suffixes = ("", "_reverse") if state.get("bidirectional") else ("",)
    held = state["_parameters"]
    if not isinstance(layers, int) or not isinstance(proj, int) or not 0 < layers * len(suffixes) <= len(held):
        raise ValueError(f"it is of {layers!r:.40} layers, and has {len(held)} parameters for them")
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if state.get("bias", True) else [])]
    kinds += ["weight_hr"] if proj > 0 else []
    names = [[f"{kind}_l{layer}{suffix}" for kind in kinds] for layer in range(layers) for suffix in suffixes]
    flat = [name for members in names for name in members]
    weights = [held.get(name, state.get(name)) for name in flat]
    for old in ("all_weights", "_data_ptrs", "_param_buf_size"):
        state.pop(old, None)
    state |= {"_all_weights": names, "_flat_weights_names": flat, "_flat_weights": weights}


def _upsample(state: State) -> None:
    """Before torch 0.4 corners were aligned; a size that is given leaves no scale to compute anew."""
    if state.get("size") is not None:
        state.setdefault("recompute_scale_factor", None)
    state.setdefault("align_corners", True if state.get("mode") in _LINEAR else None)


def _convolution(state: State) -> None:
    """Circular padding was, before torch 1.5, the padding in all, half of it on each side."""
    padding = state.get("padding")
    circular = state.get("padding_mode") == "circular" and "_reversed_padding_repeated_twice" not in state
    if circular and isinstance(padding, tuple) and all(isinstance(size, int) for size in padding):
        halves = [((size + 1) // 2, size // 2) for size in reversed(padding)]
        state["_reversed_padding_repeated_twice"] = tuple(half for pair in halves for half in pair)


def _instance_norm(state: State) -> None:
    """Before torch 0.4 it kept running statistics always and used them on request."""
    state.setdefault("track_running_stats", bool(state.get("use_running_stats", False)))


def _loss(state: State) -> None:
    """`reduction` was `size_average` and `reduce` before torch 0.4.1, and its mean had another name there."""
    if "reduction" not in state:
        average, reduce = state.get("size_average", True), state.get("reduce", True)
        state["reduction"] = _reduction.legacy_get_string(average, reduce, emit_warning=False)
    elif state["reduction"] == "elementwise_mean":
        state["reduction"] = "mean"


def _encoder_layer(state: State) -> None:
    """The activation as the fast path knows it; a module is among the children."""
    activation = state["_modules"].get("activation") or state.setdefault("activation", nn.functional.relu)
    relu = activation is nn.functional.relu or isinstance(activation, nn.ReLU)
    gelu = activation is nn.functional.gelu or isinstance(activation, nn.GELU)
    state.setdefault("activation_relu_or_gelu", 1 if relu else 2 if gelu else 0)


def _layer(state: State) -> None:
    state.setdefault("norm_first", False)


def _transformer(state: State) -> None:
    state.setdefault("batch_first", False)


# After the state was set


def _tracked(module: nn.Module) -> None:
    """The count of batches, which torch 0.4.1 brought, where there are statistics that it belongs to."""
    mean = module._buffers.get("running_mean")
    if "num_batches_tracked" not in module._buffers:
        count = None if mean is None else torch.zeros((), dtype=torch.long, device=mean.device)
        module.register_buffer("num_batches_tracked", count)


def _encoder(module: nn.Module) -> None:
    """Nested tensors, and whether its layers can have them: padded places come out otherwise, so they are not new."""
    held = module.__dict__
    held.setdefault("enable_nested_tensor", False)
    held.setdefault("mask_check", True)
    if "use_nested_tensor" not in held:
        layers: Any = module._modules.get("layers")
        first = next(iter(layers), None) if isinstance(layers, nn.ModuleList) else None
        wanted = bool(held["enable_nested_tensor"]) and isinstance(first, nn.TransformerEncoderLayer)
        held["use_nested_tensor"] = wanted and _sparse(first)


def _sparse(layer: Any) -> bool:
    attention = layer.self_attn
    return bool(
        not layer.norm_first
        and attention.batch_first
        and attention._qkv_same_embed_dim
        and attention.in_proj_bias is not None
        and layer.activation_relu_or_gelu
        and layer.norm1.eps == layer.norm2.eps
        and attention.num_heads % 2 == 0
    )


def _decoder_layer(module: nn.Module) -> None:
    """An activation that is a module, and not the function that setting the state puts before it."""
    if "activation" in module._modules:
        module.__dict__.pop("activation", None)


def _parameter_list(module: nn.Module) -> None:
    """Its length, as its items bear it out."""
    held = {*module.__dict__, *module._parameters, *module._modules}
    size = 0
    while str(size) in held:
        size += 1
    module.__dict__["_size"] = size


def _parameter_dict(module: nn.Module) -> None:
    """Its keys, those that are there."""
    held = {*module.__dict__, *module._parameters, *module._buffers, *module._modules}
    keys = module.__dict__.get("_keys")
    known = keys if isinstance(keys, dict) else module._parameters
    module.__dict__["_keys"] = {key: None for key in known if key in held}


def _data_parallel(module: nn.Module) -> None:
    """The devices, where all of them are here and the tensors on the first; without any, it calls its module."""
    held = module.__dict__
    ids, source = held.get("device_ids"), held.get("src_device_obj")
    tensors = [*module.parameters(), *module.buffers()]
    here = isinstance(ids, list) and all(isinstance(one, int) and 0 <= one < _devices() for one in ids)
    if not here or any(tensor.device != source for tensor in tensors):
        held["device_ids"] = []


def _devices() -> int:
    return torch.cuda.device_count()


_BEFORE: tuple[tuple[type[nn.Module], Callable[[State], None]], ...] = (
    (nn.RNNBase, _recurrent),
    (nn.Upsample, _upsample),
    (nn.modules.conv._ConvNd, _convolution),
    (nn.modules.instancenorm._InstanceNorm, _instance_norm),
    (_Loss, _loss),
    (nn.TransformerEncoderLayer, _encoder_layer),
    (nn.TransformerEncoderLayer, _layer),
    (nn.TransformerDecoderLayer, _layer),
    (nn.Transformer, _transformer),
)

_AFTER: tuple[tuple[type[nn.Module], Callable[[nn.Module], None]], ...] = (
    (nn.modules.batchnorm._NormBase, _tracked),
    (nn.TransformerEncoder, _encoder),
    (nn.TransformerDecoderLayer, _decoder_layer),
    (nn.ParameterList, _parameter_list),
    (nn.ParameterDict, _parameter_dict),
    (nn.DataParallel, _data_parallel),
)
