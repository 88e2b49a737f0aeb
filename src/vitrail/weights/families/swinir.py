"""SwinIR, as its authors publish it: files of a release, one a task and strength.

The strength of a noise or the quality of a JPEG belongs to the weights; the network is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from vitrail.models import variants
from vitrail.weights.cards import Card
from vitrail.weights.maps.swinir import head_title
from vitrail.weights.tables import Table

from .base import Family

RELEASE = "https://github.com/JingyunLiang/SwinIR/releases/download/v0.0/"


class SwinIRFamily(Family):
    """Image restoration with shifted windows."""

    stored_layout = "vitrail"
    first_conv = "conv_first"
    classifier = ()
    fixed_input_size = False

    def cards(self) -> list[Card]:
        return [
            Card(
                name=f"{name}.{tag}",
                input_size=variants()[name].img_size,
                mean=(0.0,) * variants()[name].in_chans,
                std=(1.0,) * variants()[name].in_chans,
                licence="apache-2.0",
                origin=f"{RELEASE}{file}.pth",
            )
            for name, tag, file in _files()
        ]

    def num_features(self, model: Any) -> int:
        width: int = model.config.embed_dim
        return width

    def table_for_export(self, tables: Sequence[Table], tensors: Mapping[str, Tensor], config: Any) -> Table:
        return next((t for t in tables if t.title == head_title(config.head)), tables[0])

    def hint(self, tensors: Mapping[str, Tensor]) -> str:
        first = tensors.get("conv_first.weight")
        if first is None or first.ndim != 4:
            return ""
        groups = len({n.split(".")[1] for n in tensors if n.startswith("layers.")})
        sizes = f"the file holds width {first.shape[0]}, {groups} groups, {first.shape[1]} channels"
        known = {n: c for n, c in variants().items() if n.startswith("swinir_")}
        like = (first.shape[0], groups, first.shape[1], _head_in(tensors))
        names = [n for n, c in known.items() if (c.embed_dim, len(c.depths), c.in_chans, c.head) == like]
        return f"{sizes}: create {' or '.join(names[:4])}." if names else f"{sizes}: create the model with these."


def _head_in(tensors: Mapping[str, Tensor]) -> str:
    if "conv_up1.weight" in tensors:
        return "nearest+conv"
    if "conv_before_upsample.0.weight" in tensors:
        return "pixelshuffle"
    return "pixelshuffledirect" if "upsample.0.weight" in tensors else "residual"


def _files() -> Iterator[tuple[str, str, str]]:
    """Yield model, tag and file of each published set of weights; a model's first is its default."""
    for s in (2, 3, 4, 8):
        yield f"swinir_classical_m_x{s}", "df2k", f"001_classicalSR_DF2K_s64w8_SwinIR-M_x{s}"
        yield f"swinir_classical_m_x{s}_48", "div2k", f"001_classicalSR_DIV2K_s48w8_SwinIR-M_x{s}"
    for s in (2, 3, 4):
        yield f"swinir_light_x{s}", "div2k", f"002_lightweightSR_DIV2K_s64w8_SwinIR-S_x{s}"
    for s in (4, 2):
        for kind in ("GAN", "PSNR"):
            yield f"swinir_real_m_x{s}", kind.lower(), f"003_realSR_BSRGAN_DFO_s64w8_SwinIR-M_x{s}_{kind}"
    for kind in ("GAN", "PSNR"):
        yield "swinir_real_l_x4", kind.lower(), f"003_realSR_BSRGAN_DFOWMFC_s64w8_SwinIR-L_x4_{kind}"
    for level in (25, 15, 50):
        yield "swinir_gray_denoise", f"noise{level}", f"004_grayDN_DFWB_s128w8_SwinIR-M_noise{level}"
        yield "swinir_color_denoise", f"noise{level}", f"005_colorDN_DFWB_s128w8_SwinIR-M_noise{level}"
    for quality in (40, 30, 20, 10):
        yield "swinir_gray_jpeg", f"jpeg{quality}", f"006_CAR_DFWB_s126w7_SwinIR-M_jpeg{quality}"
        yield "swinir_color_jpeg", f"jpeg{quality}", f"006_colorCAR_DFWB_s126w7_SwinIR-M_jpeg{quality}"


FAMILY = SwinIRFamily()
