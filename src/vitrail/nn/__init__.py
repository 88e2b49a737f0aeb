"""The heart: blocks that take plain numbers or modules, and know nothing of configs, tasks or files."""

from .attention import Attention, attend
from .cache import KVCache
from .feedforward import FeedForward
from .init import initialise
from .norms import LayerNorm2d
from .patches import PatchEmbed
from .positions import resize_positions, sincos_1d, sincos_2d
from .residual import DropPath, LayerScale, PreNormBlock, drop_path_rates
from .tokens import AttentionPool, Features, as_map, prepend

__all__ = [
    "Attention",
    "AttentionPool",
    "DropPath",
    "Features",
    "FeedForward",
    "KVCache",
    "LayerNorm2d",
    "LayerScale",
    "PatchEmbed",
    "PreNormBlock",
    "as_map",
    "attend",
    "drop_path_rates",
    "initialise",
    "prepend",
    "resize_positions",
    "sincos_1d",
    "sincos_2d",
]
