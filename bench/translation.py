"""The lectures' story in figures: networks that translate, trained alike, in one table.

    python bench/translation.py --data PATH/TO/multi30k --runs runs/translate
    python bench/translation.py --data PATH/TO/multi30k --runs runs/translate --only transformer rnn

The data are Multi30k, English to German (29,000 pairs, github.com/multi30k/dataset, task 1, raw text): ``train.en.gz``,
``train.de.gz`` and so on in one folder. Each network is its own ``vitrail train`` with one thread; runs that are
finished are not run again. Then each decodes the test in turn, alternating, and the table of
docs/benchmarks/translation.md is printed: BLEU, BLEU by the length of the source, tokens of training and sentences of
decoding a second of processor, and what decoding remembers of one sentence after so many tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.data.paralleltext import open_text
from vitrail.data.tokenbatches import Encoded, TokenBatches
from vitrail.infer.translator import Translator, load_translator
from vitrail.tasks.translate import Translate

COMMON = [
    "train.threads=1",
    "tokenizer.vocab_size=4096",
    "train.batch_tokens=2048",
    "optim={name: adamw, betas: [0.9, 0.98]}",
]
NETWORKS = {  # row of the table -> name of the run and its own settings
    "Transformer": ("transformer", "transformer_mini", ["optim.lr=2e-3", "model.drop_rate=0.2", "train.epochs=12"]),
    "RetNet decoder": ("retnet", "retnet_seq2seq_mini", ["optim.lr=2e-3", "model.drop_rate=0.2", "train.epochs=12"]),
    "GRU, attention": ("gru_attention", "gru_attention", ["optim.lr=2e-3", "train.epochs=12"]),
    "RNN, attention": ("rnn_attention", "rnn_attention", ["optim.lr=1e-3", "train.epochs=8"]),
    "GRU": ("gru", "gru_seq2seq", ["optim.lr=2e-3", "train.epochs=8"]),
    "RNN": ("rnn", "rnn_seq2seq", ["optim.lr=1e-3", "train.epochs=8"]),
}
STEPS, SENTENCES, TOKENS = 4, 200, (10, 40)


def train(name: str, model: str, settings: list[str], args: argparse.Namespace) -> Path:
    """Train one network unless that was done; return its folder."""
    folder: Path = args.runs / name
    if not (folder / "summary.json").exists():
        command = [sys.executable, "-m", "vitrail", "train", str(args.data), "--model", model, "--name", name]
        command += ["--out", str(args.runs.parent), *(f"--set={pair}" for pair in (*COMMON, *settings))]
        subprocess.run(command, check=True)
    return folder


def state_bytes(translator: Translator, tokens: int) -> int:
    """Return the bytes that decoding remembers of one sentence of 20 tokens after ``tokens`` more."""
    model = translator.model
    source = torch.full((1, 20), 5)
    with torch.inference_mode():
        state = model.begin(source, torch.ones(1, 20, dtype=torch.bool))
        for _ in range(tokens):
            model.step(torch.tensor([5]), state)
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    return sum(t.nbytes for t in held(state, weights))


def held(thing: Any, seen: set[int]) -> list[Tensor]:
    """Return every tensor that an object holds, each storage once."""
    if isinstance(thing, Tensor):
        key = thing.untyped_storage().data_ptr()
        return [] if key in seen or seen.add(key) else [thing]  # type: ignore[func-returns-value]
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, list | tuple):
        return [t for item in thing for t in held(item, seen)]
    return held(list(vars(thing).values()), seen) if hasattr(thing, "__dict__") else []


def training_pace(translator: Translator, args: argparse.Namespace) -> float:
    """Target tokens a second of processor, forward and backward in bf16."""
    model = load_translator(args.runs / args.folders[translator], device="cpu").model.bfloat16().train()
    pairs = open_text(str(args.data), languages=translator.card.languages).val
    data = Encoded.of(pairs, translator.tokenizer, 256)
    batches = list(TokenBatches(data, translator.tokenizer.specials, tokens=2048, shuffle=True).epoch())[: STEPS + 1]
    task = Translate(translator.tokenizer, translator.decode_rows, sources=[], references=[])
    task.step(model, batches[0])["loss"].backward()
    start = time.process_time()
    for batch in batches[1:]:
        task.step(model, batch)["loss"].backward()
    return sum(batch.count for batch in batches[1:]) / (time.process_time() - start)


def decoding_pace(translator: Translator, lines: list[str], beam: int) -> float:
    """Sentences a second of processor."""
    translator.beam = beam
    start = time.process_time()
    list(translator.stream(lines))
    return len(lines) / (time.process_time() - start)


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/translate"))
    parser.add_argument("--only", nargs="*", choices=[name for name, _, _ in NETWORKS.values()])
    args = parser.parse_args()
    chosen = {row: n for row, n in NETWORKS.items() if args.only is None or n[0] in args.only}
    folders = {row: train(*network, args) for row, network in chosen.items()}
    torch.set_num_threads(1)
    loaded = {row: load_translator(folder, device="cpu") for row, folder in folders.items()}
    args.folders = {loaded[row]: folder.name for row, folder in folders.items()}
    lines = open_text(str(args.data), languages=("en", "de")).tests["test_2016_flickr"].source[:SENTENCES]
    paces: dict[str, list[float]] = {row: [0.0, 0.0, 0.0] for row in loaded}
    for _ in range(2):  # alternating; the better of two
        for row, translator in loaded.items():
            found = [training_pace(translator, args), *(decoding_pace(translator, lines, beam) for beam in (1, 4))]
            paces[row] = [max(pair) for pair in zip(paces[row], found, strict=True)]
    print_tables(folders, loaded, paces)


def print_tables(folders: dict[str, Path], loaded: dict[str, Translator], paces: dict[str, list[float]]) -> None:
    """Print two tables in Markdown; paces are relative to the first row."""
    first = next(iter(paces.values()))
    print("| network | parameters | BLEU 2016 | chrF2 | BLEU 2017 | COCO 2017 | training | greedy | beam 4 | state |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row, folder in folders.items():
        summary = json.loads((folder / "summary.json").read_text())
        results = summary["results"]
        scores = [results[f"test_{name}"]["bleu"] for name in ("2016_flickr", "2017_flickr", "2017_mscoco")]
        sizes = " -> ".join(f"{state_bytes(loaded[row], n) / 1024:,.0f}" for n in TOKENS)
        relative = [f"{pace / base:.2f}" for pace, base in zip(paces[row], first, strict=True)]
        chrf = results["test_2016_flickr"]["chrf"]
        cells = [f"{summary['params'] / 1e6:.1f} M", f"{scores[0]:.2f}", f"{chrf:.1f}", f"{scores[1]:.2f}"]
        print("| " + " | ".join([row, *cells, f"{scores[2]:.2f}", *relative, f"{sizes} KiB"]) + " |")
    print()
    buckets = json.loads((next(iter(folders.values())) / "details_test_2016_flickr.json").read_text())["by_length"]
    heads = [f"{b['from']} to {b['to']} ({b['sentences']})" for b in buckets]
    print("| network | " + " | ".join(heads) + " |\n|---|" + "---:|" * len(heads))
    for row, folder in folders.items():
        found = json.loads((folder / "details_test_2016_flickr.json").read_text())["by_length"]
        print(f"| {row} | " + " | ".join(f"{b['bleu']:.1f}" for b in found) + " |")


if __name__ == "__main__":
    main()
