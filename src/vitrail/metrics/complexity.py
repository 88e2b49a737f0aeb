"""The arithmetic of attention: closed forms for its entries and multiply-adds, which :mod:`.cost` counts on a model.

Sources: Liu et al. 2021, arXiv 2103.14030, equations 1 and 2 (global and windowed); Wang et al. 2021, arXiv 2102.12122,
section 3.3 (spatial reduction); Wang et al. 2022, arXiv 2106.13797, section 3.2 (pooled: linear attention).

hw tokens of a map h · w, C width, M window side, R reduction ratio, P side of the pooled map. Biases, norms and the
softmax are left out, as the papers do.
"""

from __future__ import annotations


def pixel_entries(channels: int, height: int, width: int) -> int:
    """Return the entries of one attention matrix whose tokens are the values of a picture: (channels · h · w)²."""
    return (channels * height * width) ** 2


def patch_entries(height: int, width: int, patch: int) -> int:
    """Return the entries of one attention matrix whose tokens are whole patches of a picture."""
    return ((height // patch) * (width // patch)) ** 2


def msa_macs(tokens: int, dim: int) -> int:
    """Return the multiply-adds of global attention, projections included: 4hwC² + 2(hw)²C."""
    return 4 * tokens * dim**2 + 2 * tokens**2 * dim


def window_msa_macs(tokens: int, dim: int, window: int) -> int:
    """Return the multiply-adds of attention in windows that fill the map: 4hwC² + 2M²hwC."""
    return 4 * tokens * dim**2 + 2 * window**2 * tokens * dim


def vit_macs(tokens: int, dim: int, depth: int, hidden: int, *, patches: int, patch: int, classes: int) -> int:
    """Return the multiply-adds of a plain ViT on one RGB image: L (4NC² + 2N²C + 2NCH) + hw · 3P²C + CK.

    N tokens (patches hw, and a class token), L blocks, H width of the feed-forward, P side of a patch, K classes.
    """
    blocks = depth * (msa_macs(tokens, dim) + 2 * tokens * dim * hidden)
    return blocks + patches * 3 * patch**2 * dim + dim * classes


def reduced_msa_macs(tokens: int, dim: int, ratio: int) -> int:
    """Return the multiply-adds of spatial-reduction attention: 2hwC² + hwC² + 2(hw / R²)C² + 2(hw)²C / R².

    Queries and output, the strided convolution, keys and values, attention. R must divide the sides; for R = 1 there
    is no convolution, and it is global attention.
    """
    if ratio == 1:
        return msa_macs(tokens, dim)
    reduced = tokens // ratio**2
    return 3 * tokens * dim**2 + 2 * reduced * dim**2 + 2 * tokens * reduced * dim


def pooled_msa_macs(tokens: int, dim: int, pool: int = 7) -> int:
    """Return the multiply-adds of attention to a map pooled to P x P: 2hwC² + P²C² + 2P²C² + 2P²hwC.

    Queries and output, the 1x1 convolution, keys and values, attention: linear in the tokens.
    """
    return 2 * tokens * dim**2 + 3 * pool**2 * dim**2 + 2 * tokens * pool**2 * dim
