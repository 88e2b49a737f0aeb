"""The heart: blocks that take plain numbers or modules, and know nothing of configs, tasks or files."""

from .attention import Attention, attend
from .cache import KVCache
from .decoder import CausalAttention, Decoder, DecoderLayer, DecoderState, Encoder, EncoderLayer
from .feedforward import ConvFeedForward, FeedForward, GatedFeedForward
from .freeze import freeze_backbone
from .fused import Linear
from .init import initialise
from .lora import LoraLinear, add_lora, merge_lora
from .norms import LayerNorm2d
from .patches import OverlapPatchEmbed, PatchEmbed, PatchMerging, SquareEmbed, project_squares
from .positions import SinusoidalPositions, resize_positions, sincos_1d, sincos_2d
from .recurrent import AdditiveAttention, RecurrentState, recurrence
from .reduction import PooledReduction, ReducedBlock, StridedReduction
from .residual import DropPath, LayerScale, PreNormBlock, drop_path_rates
from .retention import Retention, RetentionState
from .tokens import AttentionPool, Features, as_map, prepend
from .windows import WindowAttention, Windows

__all__ = [
    "AdditiveAttention",
    "Attention",
    "AttentionPool",
    "CausalAttention",
    "ConvFeedForward",
    "Decoder",
    "DecoderLayer",
    "DecoderState",
    "DropPath",
    "Encoder",
    "EncoderLayer",
    "Features",
    "FeedForward",
    "GatedFeedForward",
    "KVCache",
    "LayerNorm2d",
    "LayerScale",
    "Linear",
    "LoraLinear",
    "OverlapPatchEmbed",
    "PatchEmbed",
    "PatchMerging",
    "PooledReduction",
    "PreNormBlock",
    "RecurrentState",
    "ReducedBlock",
    "Retention",
    "RetentionState",
    "SinusoidalPositions",
    "SquareEmbed",
    "StridedReduction",
    "WindowAttention",
    "Windows",
    "add_lora",
    "as_map",
    "attend",
    "drop_path_rates",
    "freeze_backbone",
    "initialise",
    "merge_lora",
    "prepend",
    "project_squares",
    "recurrence",
    "resize_positions",
    "sincos_1d",
    "sincos_2d",
]
