"""Decoding beside transformers' ``generate``: the same weights, one process, turn by turn.

    python bench/decoding.py                              # greedy and beam 4, sizes for this machine, random weights
    python bench/decoding.py transformer_base --batch 16  # of another size
    python bench/decoding.py --run runs/translate/NAME --text test.en.gz  # a trained model: texts end where they end

Random weights say no end: every text is cut at ``--length`` tokens, and both sides do the same steps. The texts of both
are compared token by token before anything is timed. Each line is a row of the table in docs/benchmarks/decoding.md:
sentences a processor second of both, in the best round, and the ratio of each round, ours against theirs a moment
later: its median and the quartiles. Processor seconds of one thread, since the machine has other work to do.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pairs import peers
from vitrail.data.tokenizer import Tokenizer
from vitrail.infer.decode import Limits, beam_search, greedy
from vitrail.models import build, config_of
from vitrail.models.transformer import TransformerConfig
from vitrail.weights import export_weights
from vitrail.weights.configs import to_transformers
from vitrail.weights.textfolder import open_text_folder

SIZES = ("transformer_tiny", "transformer_mini", "transformer_small")
Run = Callable[[], object]


def in_halves(model: nn.Module) -> nn.Module:
    """Return the same function with all sines before all cosines, which is what Marian has.

    The order of the channels of the residual stream is free: every matrix that reads or writes it is reordered.
    """
    c = model.config
    if c.numerics.layout == "halves":
        return model
    order = torch.cat([torch.arange(0, c.embed_dim, 2), torch.arange(1, c.embed_dim, 2)])
    other = build(replace(c, head_bias=True, numerics=replace(c.numerics, layout="halves"))).eval()
    state = dict(other.state_dict())
    for name, tensor in model.state_dict().items():
        into = name.endswith(("proj.weight", "proj.bias", "fc2.weight", "fc2.bias")) or ".norm" in name
        state[name] = tensor[order] if into else tensor[:, order] if tensor.ndim == 2 else tensor
    other.load_state_dict(state)
    return other


def peer_of(model: nn.Module) -> Any:
    """Return transformers' model with the weights of ours."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from safetensors.torch import save_file

        save_file(export_weights(model, "transformers"), Path(folder) / "model.safetensors", metadata={"format": "pt"})
        config = peers.transformers.MarianConfig.from_dict(to_transformers(model.config, None))
        config.save_pretrained(folder)
        return peers.transformers.MarianMTModel.from_pretrained(folder).eval()


def sentences(config: TransformerConfig, count: int, seed: int = 0) -> list[list[int]]:
    """Return ids of sentences of 6 to 20 tokens, as long as those of Multi30k."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 21, (count,), generator=generator).tolist()
    ids = [torch.randint(4, config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
    return [[*row, config.specials.eos] for row in ids]


def batches(rows: list[list[int]], pad: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return (source, keep) of sentences sorted by length, ``size`` together."""
    rows = sorted(rows, key=len)
    found = []
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        width = max(map(len, some))
        source = torch.tensor([[*row, *[pad] * (width - len(row))] for row in some])
        found.append((source, torch.arange(width) < torch.tensor([len(row) for row in some])[:, None]))
    return found


def theirs(peer: Any, parts: list[tuple[Tensor, Tensor]], beams: int, length: int) -> list[list[int]]:
    """Return the texts that generate finds."""
    found: list[list[int]] = []
    for source, keep in parts:
        out = peer.generate(
            input_ids=source,
            attention_mask=keep.long(),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=length,
            length_penalty=0.6,
            early_stopping=False,
        )
        eos = peer.config.eos_token_id
        found += [row[: row.index(eos)] if eos in row else row for row in out[:, 1:].tolist()]
    return found


def ours(model: Any, parts: list[tuple[Tensor, Tensor]], beams: int, length: int) -> list[list[int]]:
    """Return the texts that Vitrail finds by the same rules."""
    limits = Limits(model.config.specials, length, banned=())
    found: list[list[int]] = []
    for source, keep in parts:
        mask = None if bool(keep.all()) else keep
        if beams == 1:
            found += greedy(model, source, mask, limits=limits).rows()
        else:
            found += beam_search(
                model, source, mask, limits=limits, beams=beams, length_penalty=0.6, penalty="power"
            ).rows()
    return found


def compare(
    name: str, model: Any, peer: Any, parts: list[tuple[Tensor, Tensor]], beams: int, length: int, rounds: int
) -> None:
    """Check that the texts are the same, and print one row of the table."""
    runs = {"ours": lambda: ours(model, parts, beams, length), "theirs": lambda: theirs(peer, parts, beams, length)}
    a, b = (run() for run in runs.values())
    same = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
    used: dict[str, list[float]] = {key: [] for key in runs}
    for i in range(rounds):
        for key in list(runs)[:: 1 if i % 2 else -1]:
            worked = time.process_time()
            runs[key]()
            used[key].append(time.process_time() - worked)
    ratios = [b / a for a, b in zip(used["ours"], used["theirs"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    speed = {key: len(a) / min(seconds) for key, seconds in used.items()}
    print(
        f"| {name} | {'greedy' if beams == 1 else f'beam {beams}'} | {len(parts[0][0])} | {speed['ours']:.1f} |"
        f" {speed['theirs']:.1f} | {middle:.2f} ({low:.2f} to {high:.2f}) | {100 * same:.1f}% |",
        flush=True,
    )


def fresh(name: str) -> Any:
    """Return a model with random weights whose texts do not end."""
    torch.manual_seed(0)
    config = config_of(name)
    numerics = replace(config.numerics, layout="halves")
    config = replace(config, head_bias=True, norm_first=False, final_norm=False, numerics=numerics)  # as Marian is
    model = build(config).eval()
    with torch.no_grad():
        model.output_bias[config.specials.eos] = -1e4
    return model


def trained(folder: str, text: str, count: int) -> tuple[Any, list[list[int]]]:
    """Return the model of a run and the ids of the first lines of a text."""
    found = open_text_folder(folder)
    with gzip.open(text, "rt", encoding="utf-8") as lines:
        ids = Tokenizer.load(found.tokenizer, found.config.specials).encode([line.strip() for line in lines][:count])
    return in_halves(found.load().eval()), [[*row, found.config.specials.eos] for row in ids]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=SIZES)
    parser.add_argument("--run")
    parser.add_argument("--text")
    parser.add_argument("--batch", type=int, nargs="*", default=(32,))
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--beams", type=int, nargs="*", default=(1, 4))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | search | batch | sentences/s | transformers | ratio | same texts |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in [args.run] if args.run else args.models:
        if args.run:
            model, rows = trained(args.run, args.text, args.count)
        else:
            model = fresh(name)
            rows = sentences(model.config, args.count)
        peer = peer_of(model)
        for size in args.batch:
            parts = batches(rows, model.config.specials.pad, size)
            for beams in args.beams:
                compare(Path(name).name, model, peer, parts, beams, args.length, args.rounds)


if __name__ == "__main__":
    main()
