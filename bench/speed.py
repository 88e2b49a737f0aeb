"""Speed beside the libraries people would use instead: same weights, one process, turn by turn.

    python bench/speed.py inference                      # float32 eager, ViT-S/16, 224, batch 8
    python bench/speed.py train                          # bf16 step against timm's float32 step, ViT-Ti/16
    python bench/speed.py attention                      # plain products against the fused kernel, bf16

Absolute times depend on the machine and its neighbours; the ratio of each round, ours against theirs a moment later, is
what is reported: its median, and the quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import peers

import vitrail
from vitrail.nn import attention
from vitrail.training.optim import Masters

Run = Callable[[], object]


def alternate(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each run in each round; runs take turns, and the order turns round too."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for i in range(rounds):
        for name in list(runs)[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
    return times


def report(times: dict[str, list[float]], ours: str) -> None:
    """Print how many times faster ``ours`` is than each other one."""
    for name in times:
        if name != ours:
            ratios = [t / o for t, o in zip(times[name], times[ours], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"  {ours} is {middle:.2f} times as fast as {name} (quartiles {low:.2f} to {high:.2f})")


def vit_peers(name: str) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """Return (ours, timm's, transformers') of one architecture, with the same random weights."""
    theirs = peers.randomise(peers.timm.create_model(name))
    ours = vitrail.create_model(name).eval()
    vitrail.load_weights(ours, theirs.state_dict())
    c = ours.config
    settings = peers.transformers.ViTConfig(
        hidden_size=c.embed_dim,
        num_hidden_layers=c.depth,
        num_attention_heads=c.num_heads,
        intermediate_size=c.hidden_dim,
        num_labels=c.num_classes,
        layer_norm_eps=c.numerics.norm_eps,
    )
    third = peers.transformers.ViTForImageClassification(settings).eval()
    third.load_state_dict(hub_names_in_memory(third, vitrail.export_weights(ours, "transformers")))
    return ours, theirs, third


def hub_names_in_memory(model: torch.nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` under the names ``model`` has in memory: its own reader renames a saved folder."""
    import tempfile

    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        save_file({k: v.contiguous() for k, v in state.items()}, Path(folder) / "model.safetensors", {"format": "pt"})
        return type(model).from_pretrained(folder).state_dict()


def inference(args: argparse.Namespace) -> None:
    """Float32 eager forward."""
    ours, timm, transformers = vit_peers(args.model or "vit_small_patch16_224")
    x = torch.randn(args.batch or 8, 3, 224, 224)
    with torch.inference_mode():
        gap = float((ours(x) - timm(x)).abs().max()), float((ours(x) - transformers(x).logits).abs().max())
        print(f"float32 inference, {args.model or 'vit_small_patch16_224'}, batch {len(x)}; largest differences {gap}")
        runs: dict[str, Run] = {
            "vitrail": lambda: ours(x),
            "timm": lambda: timm(x),
            "transformers": lambda: transformers(x),
        }
        report(alternate(runs, args.rounds), "vitrail")


def train(args: argparse.Namespace) -> None:
    """A whole training step: forward, loss, backward, AdamW."""
    name = args.model or "vit_tiny_patch16_224"
    batch = args.batch or 16
    x, y = torch.randn(batch, 3, 224, 224), torch.randint(0, 1000, (batch,))
    start = peers.timm.create_model(name).state_dict()
    runs = {
        "vitrail bf16": our_step(name, start, torch.bfloat16, x, y),
        "vitrail float32": our_step(name, start, torch.float32, x, y),
        "timm float32": timm_step(name, start, x, y),
    }
    print(f"training step, {name}, batch {batch}")
    report(alternate(runs, args.rounds), "vitrail bf16")


def our_step(name: str, start: dict[str, Tensor], dtype: torch.dtype, x: Tensor, y: Tensor) -> Run:
    """Return a step of Vitrail's loop: working weights in ``dtype``, float32 masters."""
    model = vitrail.create_model(name)
    vitrail.load_weights(model, start)
    masters = Masters(model, SimpleNamespace(name="adamw", betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05), dtype)

    def step() -> float:
        loss = F.cross_entropy(model(x.to(dtype)).float(), y)
        loss.backward()
        masters.gather()
        masters.update(1e-3)
        return float(loss.detach())

    return step


def timm_step(name: str, start: dict[str, Tensor], x: Tensor, y: Tensor) -> Run:
    """Return the same step with timm's model and torch's AdamW, fused, in float32."""
    model = peers.timm.create_model(name)
    model.load_state_dict(start)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def kernels(args: argparse.Namespace) -> None:
    """Forward and backward of attention alone, bf16: plain products against the fused kernel."""
    for b, h, n, d in ((128, 4, 64, 32), (16, 3, 197, 64), (8, 6, 197, 64), (2, 12, 577, 64)):
        q, k, v = (torch.randn(b, h, n, d, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

        def run(most: int, q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
            attention.MOST_WEIGHTS = most
            attention.attend(q, k, v).sum().backward()

        print(f"attention bf16, B {b}, H {h}, N {n}, D {d}")
        report(alternate({"products": lambda r=run: r(2**40), "fused": lambda r=run: r(0)}, args.rounds), "products")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["inference", "train", "attention"])
    parser.add_argument("--model")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    {"inference": inference, "train": train, "attention": kernels}[args.what](args)


if __name__ == "__main__":
    main()
