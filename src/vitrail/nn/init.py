"""Initial weights, by the name of where they come from.

``jax``: the original ViT code: Xavier-uniform matrices, biases of the feed-forward network N(0, 1e-6), a LeCun-normal
patch projection, positions N(0, 0.02), class token and head zero (Dosovitskiy et al. 2021, arXiv 2010.11929); in
hybrids the last norm of each convolutional block zero.
``trunc_normal``: DeiT's and timm's: matrices and tables from a normal of 0.02, truncated at two units; biases zero
(Touvron et al. 2021, arXiv 2012.12877).
``pvt_v2``: the same, and convolutions N(0, 2 / fan-out), fan-out divided by the groups (the code of Wang et al. 2022,
arXiv 2106.13797).
``coatnet``: Xavier-uniform matrices, convolutions N(0, 2 / fan-out) as EfficientNet's (Tan and Le 2019, arXiv
1905.11946), biases zero.
``recurrent``: embeddings and heads uniform within 0.1 (Luong et al. 2015, arXiv 1508.04025, section 4.1),
Xavier-uniform matrices, biases zero; recurrent layers as torch makes them: all uniform within C ** -0.5.
``retnet``: Xavier-uniform matrices in retention, of gain 2^-2.5 into it and 1/2 out of it; tables of tokens and the
output N(0, 1 / width); the rest as torch makes linear layers (torchscale, the code of Sun et al. 2023, arXiv
2307.08621, in its repository; its release 0.3.0 has gain 1 where this has 1/2).
``transformer``: Xavier-uniform matrices, q, k and v as the one matrix they are stored in, embeddings and the output
layer N(0, 1 / width), padding and biases zero (fairseq's code of Vaswani et al. 2017, arXiv 1706.03762).
``normal``: matrices, embeddings and tables N(0, 0.02), padding and biases zero (Devlin et al. 2019, arXiv 1810.04805;
Radford et al. 2019, GPT-2).
``igpt``: queries, keys and values N(0, 1 / width), what the attention gives N(0, 1 / (width · layers)), all other
matrices and the colours N(0, 0.02), positions N(0, 0.01), the outputs zero (the code of Chen et al. 2020, image GPT).
``dense``: of decoders: convolutions N(0, 2 / fan-out), linear layers as trunc_normal has them, biases zero; classifiers
of pixels, 1x1 convolutions named ``head``, N(0, 0.01) (mmseg).
``detr``: Xavier-uniform matrices and biases of zero in attention, Xavier-uniform matrices of the feed-forward networks,
heads as torch makes them, queries and embeddings N(0, 1) (the code of Carion et al. 2020, arXiv 2005.12872).
Tables of relative positions come as N(0, 0.02) whatever the scheme.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .bottleneck import BasicBlock, Bottleneck
from .feedforward import FeedForward


def initialise(model: nn.Module, scheme: str) -> None:
    """Set all weights of ``model`` in place by the named scheme; ValueError lists the names.

    Parameters that belong to the model itself and not to a layer (class token, positions, queries) are recognised by
    their last name.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"expected an initialiser of {', '.join(sorted(SCHEMES))}, got {scheme!r}")
    SCHEMES[scheme](model)


def trunc_normal_(tensor: Tensor, std: float = 0.02) -> Tensor:
    """Fill from N(0, std) truncated at two units of 1.0, as the public code does (so hardly truncated at all)."""
    return nn.init.trunc_normal_(tensor, std=std, a=-2.0, b=2.0)


def lecun_normal_(weight: Tensor) -> Tensor:
    """Fill (out, in, ...) with a normal truncated at two sigmas whose variance is 1 / fan-in."""
    fan_in = weight[0].numel()
    std = math.sqrt(1.0 / fan_in) / 0.87962566103423978  # the spread that truncation at two sigmas takes away
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def _free_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters that no layer of torch's own holds, by their last name."""
    found: dict[str, list[nn.Parameter]] = {}
    for module in model.modules():
        if type(module).__module__.startswith("torch.nn"):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            found.setdefault(name, []).append(parameter)
    return found


def _fill_free(model: nn.Module, fills: dict[str, Callable[[Tensor], object]]) -> None:
    for name, parameters in _free_parameters(model).items():
        for parameter in parameters:
            if name in fills:
                fills[name](parameter)


@torch.no_grad()
def _jax(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if name.startswith("head"):
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            lecun_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, FeedForward):
            nn.init.normal_(module.fc1.bias, std=1e-6)
            nn.init.normal_(module.fc2.bias, std=1e-6)
    _split_qkv_xavier(model)
    _zero_last_norms(model)
    _fill_free(
        model,
        {
            "cls_token": nn.init.zeros_,
            "dist_token": nn.init.zeros_,
            "pos_embed": lambda t: nn.init.normal_(t, std=0.02),
            "latent": nn.init.xavier_uniform_,
        },
    )


def _split_qkv_xavier(model: nn.Module) -> None:
    """Give q, k and v the spread they have as three square matrices; one (3C, C) matrix would get less."""
    from .attention import Attention

    for module in model.modules():
        if isinstance(module, Attention):
            for part in module.qkv.weight.chunk(3):
                nn.init.xavier_uniform_(part)


@torch.no_grad()
def _trunc_normal(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    small = dict.fromkeys(("pos_embed", "dist_token", "cls_token", "latent"), trunc_normal_)
    _fill_free(model, dict(small))


def _convolutions_by_fan_out(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def _pvt_v2(model: nn.Module) -> None:
    _trunc_normal(model)
    _convolutions_by_fan_out(model)


@torch.no_grad()
def _coatnet(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    _split_qkv_xavier(model)
    _convolutions_by_fan_out(model)


@torch.no_grad()
def _resnet(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    _zero_last_norms(model)


@torch.no_grad()
def _dense(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Conv2d):
            if name.startswith("head"):
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _zero_last_norms(model: nn.Module) -> None:
    """Let every residual block start as its shortcut."""
    for module in model.modules():
        if isinstance(module, BasicBlock | Bottleneck) and isinstance(module.last_norm.weight, nn.Parameter):
            nn.init.zeros_(module.last_norm.weight)


@torch.no_grad()
def _bit(model: nn.Module) -> None:
    _resnet(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name == "head":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


@torch.no_grad()
def _recurrent(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -0.1, 0.1)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    _fill_free(model, {"output_weight": lambda t: nn.init.uniform_(t, -0.1, 0.1), "output_bias": nn.init.zeros_})


@torch.no_grad()
def _retnet(model: nn.Module) -> None:
    from .retention import Retention

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, module in model.named_modules():
        if isinstance(module, Retention):
            for layer in (module.q, module.k, module.v, module.gate):
                nn.init.xavier_uniform_(layer.weight, gain=2**-2.5)
            nn.init.xavier_uniform_(module.proj.weight, gain=0.5)
        elif name == "output_projection" and isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)


@torch.no_grad()
def _transformer(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if name == "output":
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            _embedding_normal_(module, module.embedding_dim**-0.5)
    _fill_free(model, {"output_bias": nn.init.zeros_, "cls_token": partial(nn.init.normal_, std=0.02)})


@torch.no_grad()
def _normal(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            _embedding_normal_(module, 0.02)
    _fill_free(model, {"output_bias": nn.init.zeros_, "cls_token": partial(nn.init.normal_, std=0.02)})


def _embedding_normal_(table: nn.Embedding, std: float) -> None:
    nn.init.normal_(table.weight, std=std)
    if table.padding_idx is not None:
        nn.init.zeros_(table.weight[table.padding_idx])


@torch.no_grad()
def _igpt(model: nn.Module) -> None:
    from .attention import Attention

    layers = [m for m in model.modules() if isinstance(m, Attention)]
    _normal(model)
    for attn in layers:
        width = attn.proj.out_features
        nn.init.normal_(attn.qkv.weight, std=width**-0.5)
        nn.init.normal_(attn.proj.weight, std=(width * len(layers)) ** -0.5)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name in ("head", "pixel_head"):
            nn.init.zeros_(module.weight)
    _fill_free(model, {"pos_embed": lambda t: nn.init.normal_(t, std=0.01)})


@torch.no_grad()
def _detr(model: nn.Module) -> None:
    from .attention import Attention

    for module in model.modules():
        if isinstance(module, FeedForward):
            nn.init.xavier_uniform_(module.fc1.weight)
            nn.init.xavier_uniform_(module.fc2.weight)
        elif isinstance(module, Attention):
            for layer in (module.qkv, module.proj):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
    _fill_free(model, dict.fromkeys(("query_embed", "level_embed", "content"), nn.init.normal_))


SCHEMES: dict[str, Callable[[nn.Module], None]] = {
    "bit": _bit,
    "coatnet": _coatnet,
    "dense": _dense,
    "detr": _detr,
    "igpt": _igpt,
    "jax": _jax,
    "normal": _normal,
    "pvt_v2": _pvt_v2,
    "recurrent": _recurrent,
    "resnet": _resnet,
    "retnet": _retnet,
    "transformer": _transformer,
    "trunc_normal": _trunc_normal,
}
