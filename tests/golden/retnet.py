"""Write golden tensors of torchscale's RetNet: weights, tokens, and the logits of its three forms.

    pip install --target /tmp/torchscale --no-deps torchscale==0.3.0
    PYTHONPATH=/tmp/torchscale python tests/golden/retnet.py tests/golden/retnet.safetensors

torchscale asks for packages that its RetNet does not use (fairscale) or that have moved (timm's layers): three names
are put in their place here. It cannot be among the project's own dependencies, for it pins an old timm.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SIZES: dict[str, dict[str, Any]] = {  # as torchscale's RetNetConfig names them
    "untied": {
        "vocab_size": 19,
        "decoder_embed_dim": 16,
        "decoder_value_embed_dim": 24,
        "decoder_retention_heads": 2,
        "decoder_ffn_embed_dim": 20,
        "decoder_layers": 2,
        "activation_fn": "gelu",
        "recurrent_chunk_size": 8,
    },
    "tied": {
        "vocab_size": 23,
        "decoder_embed_dim": 32,
        "decoder_value_embed_dim": 40,
        "decoder_retention_heads": 4,
        "decoder_ffn_embed_dim": 24,
        "decoder_layers": 3,
        "activation_fn": "swish",
        "share_decoder_input_output_embed": True,
        "recurrent_chunk_size": 8,
    },
}
LENGTH = 21  # not a multiple of the chunk


def _stand_in(name: str, **names: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(names)
    sys.modules[name] = module


def _decoder(size: dict[str, Any], seed: int) -> nn.Module:
    _stand_in("fairscale")
    _stand_in("fairscale.nn", checkpoint_wrapper=None, wrap=None)
    for name in ("timm", "timm.models", "timm.models.layers"):
        _stand_in(name, drop_path=None)
    from torchscale.architecture.config import RetNetConfig
    from torchscale.architecture.retnet import RetNetDecoder

    config = RetNetConfig(**size)
    decoder = RetNetDecoder(config, embed_tokens=nn.Embedding(config.vocab_size, config.decoder_embed_dim))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 1 + 0.2 * noise)
    return decoder.eval()


@torch.no_grad()
def golden(name: str, seed: int) -> dict[str, Tensor]:
    """Return the tensors of one size."""
    decoder = _decoder(SIZES[name], seed)
    tokens = torch.randint(SIZES[name]["vocab_size"], (2, LENGTH), generator=torch.Generator().manual_seed(seed + 1))
    found = {"tokens": tokens, "parallel": decoder(tokens)[0]}
    state: dict[Any, Any] = {}
    steps = [decoder(tokens[:, : t + 1], incremental_state=state)[0] for t in range(LENGTH)]
    found["recurrent"] = torch.cat(steps, 1)
    decoder.chunkwise_recurrent = True
    found["chunkwise"] = decoder(tokens)[0]
    weights = {f"weights/{key}": tensor for key, tensor in decoder.state_dict().items()}
    return {f"{name}/{key}": tensor.clone().contiguous() for key, tensor in (found | weights).items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="file to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    every = {key: t for name in SIZES for key, t in golden(name, args.seed).items()}
    save_file(every, args.path, metadata={"sizes": json.dumps(SIZES), "made_with": "torchscale 0.3.0"})
