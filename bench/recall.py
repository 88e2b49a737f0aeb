"""How far back can a trained network look? One token to be named again after so many others, trained in seconds.

    python bench/recall.py                          every network at every distance, one seed, minutes on one core
    python bench/recall.py --distances 5 20 80      the table of docs/tour/rnn.md
    python bench/recall.py --seeds 3                the median of three

A sequence is one of eight marks, then ``distance`` noise tokens, then the question; the answer is the mark. Marks and
noise are drawn afresh for every batch, and the accuracy is that on 1,000 sequences after training. Guessing gives 12.5
%. After Hochreiter and Schmidhuber 1997, section 5, whose tasks ask for one early token behind many others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vitrail.explain.through_time import OPEN, open_gates
from vitrail.models import build
from vitrail.models.decoder import TransformerDecoderConfig
from vitrail.models.rnn import RNNLanguageModelConfig
from vitrail.nn.recurrent import Cell

MARKS, NOISE, FIRST = 8, 8, 4  # four ids before them are specials and the question
QUESTION = 1
VOCABULARY = FIRST + MARKS + NOISE
WIDTH, BATCH, STEPS, RATE, CLIP = 64, 64, 800, 2e-3, 1.0


def draw(rows: int, distance: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return sequences (rows, distance + 2) and the mark each begins with (rows,)."""
    mark = torch.randint(FIRST, FIRST + MARKS, (rows, 1), generator=random)
    noise = torch.randint(FIRST + MARKS, VOCABULARY, (rows, distance), generator=random)
    return torch.cat([mark, noise, torch.full((rows, 1), QUESTION)], 1), mark[:, 0]


def recurrent(cell: Cell, bias: float = 0.0) -> nn.Module:
    """Return a language model of one layer, its gates opened by ``bias``."""
    model = build(
        RNNLanguageModelConfig(VOCABULARY, cell=cell, embed_dim=WIDTH, hidden_dim=WIDTH, tied=False, drop_rate=0.0)
    )
    open_gates(model.rnn, bias)  # type: ignore[arg-type]
    return model


def turned() -> nn.Module:
    """Return a plain network whose W begins orthogonal: spectral radius 1."""
    model = recurrent("tanh")
    nn.init.orthogonal_(model.rnn.weight_hh_l0)  # type: ignore[union-attr, arg-type]
    return model


def transformer() -> nn.Module:
    """Return a decoder alone of two layers."""
    return build(
        TransformerDecoderConfig(VOCABULARY, embed_dim=WIDTH, depth=2, num_heads=4, hidden_dim=2 * WIDTH, drop_rate=0.0)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "RNN (tanh)": lambda: recurrent("tanh"),
    "RNN, orthogonal W": turned,
    "GRU": lambda: recurrent("gru"),
    "LSTM": lambda: recurrent("lstm"),
    "GRU, open": lambda: recurrent("gru", OPEN),
    "LSTM, open": lambda: recurrent("lstm", OPEN),
    "Transformer": transformer,
}


def accuracy(network: str, distance: int, seed: int) -> float:
    """Train a network on the task and return the share of 1,000 new sequences it answers right."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed + 1)
    model = NETWORKS[network]()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for _ in range(STEPS):
        tokens, mark = draw(BATCH, distance, random)
        loss = nn.functional.cross_entropy(model.head(model.hidden(tokens)[:, -1]), mark)  # type: ignore[operator]
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
    tokens, mark = draw(1000, distance, random)
    with torch.inference_mode():
        model.eval()
        right = model(tokens)[:, -1].argmax(-1) == mark
    return float(right.double().mean())


def table(found: dict[str, dict[int, float]], distances: Sequence[int]) -> str:
    """Return the accuracies in percent as a Markdown table."""
    lines = ["| tokens between | " + " | ".join(found) + " |", "|--:" * (len(found) + 1) + "|"]
    lines += [f"| {d} | " + " | ".join(f"{100 * found[n][d]:.0f}" for n in found) + " |" for d in distances]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--distances", type=int, nargs="+", default=[1, 3, 5, 10, 20, 40, 80])
    parser.add_argument("--networks", nargs="+", choices=sorted(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write every accuracy here")
    args = parser.parse_args()
    began, every = time.perf_counter(), {}
    for network in args.networks:
        every[network] = {d: [accuracy(network, d, seed) for seed in range(args.seeds)] for d in args.distances}
        print(network, every[network], f"{time.perf_counter() - began:.0f} s", flush=True)
    found = {n: {d: statistics.median(shares) for d, shares in by.items()} for n, by in every.items()}
    print(table(found, args.distances))
    if args.json is not None:
        args.json.write_text(json.dumps({"steps": STEPS, "width": WIDTH, "accuracy": every}), encoding="utf-8")


if __name__ == "__main__":
    main()
