"""What a RetNet remembers and how long a step takes, against a Transformer that caches keys and values.

    python bench/retention.py            # pictures and the page, about 2 minutes of one core
    python bench/retention.py --decays   # the picture of the decays only, which needs no measuring
    python bench/retention.py --quick    # seconds, to see that it works: small models, few steps, no files

Reading on: a RetNet and a decoder-only Transformer of the same width, depth and number of parameters read the same
texts, 4,096 tokens and more. At every 256th token each takes some steps of one token, in turns, so that what else the
machine does slows both alike; in between they read many tokens at a time. Time is processor time of one thread; of the
steps at one place the fastest counts, divided by the RetNet's own at the first place. Bytes are those of the state:
matrices of the one, keys and values of the other, without room for more.

Reading at once: the forms of retention on whole texts of growing length, whole models without their output; the best
of the rounds, divided by the parallel form's at the shortest length.

Before anything is measured, the last logits of the steps are compared with those of the chunkwise form.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vitrail.explain.charts import Plot, Series
from vitrail.explain.colors import BLUE, GREEN, ORANGE, colorize
from vitrail.explain.draw import Bar, Tile, enlarged, sheet
from vitrail.models.decoder import TransformerDecoder, TransformerDecoderConfig
from vitrail.models.retnet import RetNet, RetNetConfig, RetNetState
from vitrail.nn.decoder import DecoderState
from vitrail.nn.retention import Decays, log_decays

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
NAMES = ("RetNet", "Transformer")
COLORS = dict(zip(NAMES, (ORANGE, BLUE), strict=True))
FORMS = {"parallel": BLUE, "chunkwise": ORANGE, "recurrent": GREEN}
WIDTH, DEPTH, HEADS, INNER, VOCABULARY = 256, 6, 4, 432, 1000  # retnet_tiny with a small vocabulary


def pair(width: int, depth: int, inner: int) -> tuple[RetNet, TransformerDecoder]:
    """Return the two models; 3 · ``inner`` · width is what a gated network takes, 8 · width² what a plain one does."""
    torch.manual_seed(0)
    retnet = RetNetConfig(VOCABULARY, embed_dim=width, depth=depth, num_heads=HEADS, value_dim=inner, hidden_dim=inner)
    transformer = TransformerDecoderConfig(
        VOCABULARY, embed_dim=width, depth=depth, num_heads=HEADS, hidden_dim=4 * width
    )
    return RetNet(retnet).eval(), TransformerDecoder(transformer).eval()


def held(state: RetNetState | DecoderState) -> int:
    """Return the bytes of a state, without room that is kept for more."""
    if isinstance(state, RetNetState):
        return state.nbytes
    return sum(part.numel() * part.element_size() for memory in state.memories for part in memory.read())


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def read_many(model: RetNet | TransformerDecoder, tokens: Tensor, state: RetNetState | DecoderState) -> None:
    """Read tokens (B, T) at once, after those of the state."""
    if isinstance(state, RetNetState):
        model.hidden(tokens, state=state)
    else:
        model.decoder.step(model.place(model.embed, tokens, state.length), state)


def read_on(args: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, list[int]], list[int]]:
    """Read on and on; returns the seconds of a step and the bytes at each place, and the places."""
    models = dict(zip(NAMES, pair(args.width, args.depth, args.inner), strict=True))
    places = [0, *range(args.every, args.tokens + 1, args.every)]
    length = places[-1] + args.steps
    tokens = torch.randint(4, VOCABULARY, (args.batch, length), generator=torch.Generator().manual_seed(1))
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    sizes: dict[str, list[int]] = {name: [] for name in NAMES}
    states = {name: model.begin(tokens[:, :0]) for name, model in models.items()}
    logits: dict[str, Tensor] = {}
    at = 0
    for place in places:
        best = dict.fromkeys(NAMES, float("inf"))
        for name, model in models.items():
            if place > at:
                read_many(model, tokens[:, at:place], states[name])
            sizes[name].append(held(states[name]) if place else 0)
        for t in range(place, place + args.steps):
            for name, model in models.items():
                start = time.process_time()
                logits[name] = model.step(tokens[:, t], states[name])
                best[name] = min(best[name], time.process_time() - start)
        at = place + args.steps
        for name in NAMES:
            times[name].append(best[name])
        print(
            f"  {place:>6} tokens: " + ", ".join(f"{n} {best[n] / times[NAMES[0]][0]:.2f}" for n in NAMES), flush=True
        )
    at_once = models["RetNet"].head(models["RetNet"].hidden(tokens, form="chunkwise")[:, -1])
    apart = float((at_once - logits["RetNet"]).abs().max())
    print(f"after {length} tokens: logits of the last step and of the whole text are {apart:.1e} apart", flush=True)
    assert apart < 1e-3, "the forms do not agree"
    return times, sizes, places


def read_at_once(args: argparse.Namespace) -> dict[str, list[tuple[int, float]]]:
    """Return (length, seconds) of each form."""
    model, _ = pair(args.width, args.depth, args.inner)
    found: dict[str, list[tuple[int, float]]] = {form: [] for form in FORMS}
    for length in args.lengths:
        tokens = torch.randint(4, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(2))
        best = dict.fromkeys(FORMS, float("inf"))
        for _ in range(args.rounds):
            for form in FORMS:
                best[form] = min(best[form], seconds(lambda f=form, t=tokens: model.hidden(t, form=f)))
        for form in FORMS:
            found[form].append((length, best[form]))
    return found


def line(title: str, labels: tuple[str, str], series: list[Series], *, log: bool = False) -> str:
    """Draw curves; axes that are not logarithmic begin at 0."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    low = (min(xs) / 1.1, min(ys) / 1.3) if log else (0.0, 0.0)
    return Plot(title, *labels, (low[0], max(xs) * 1.02), (low[1], max(ys) * 1.1), (680, 360), log=log).svg(series)


def pictures(
    times: dict[str, list[float]],
    sizes: dict[str, list[int]],
    places: list[int],
    forms: dict[str, list[tuple[int, float]]],
) -> dict[str, str]:
    """Return name -> picture."""
    first, shortest = times["RetNet"][0], forms["parallel"][0][1]
    steps = [Series(n, [(x, s / first) for x, s in zip(places, times[n], strict=True)], COLORS[n]) for n in NAMES]
    memory = [
        Series(n, [(x, b / 1e6) for x, b in zip(places[1:], sizes[n][1:], strict=True)], COLORS[n]) for n in NAMES
    ]
    whole = [Series(f, [(x, s / shortest) for x, s in points], FORMS[f]) for f, points in forms.items()]
    dots = [Series("", one.points, one.color, dots=True) for one in whole]
    read = "tokens read"
    return {
        "retention-step-time.svg": line("Time of one more token", (read, "times RetNet's first step"), steps),
        "retention-step-memory.svg": line("What is remembered", (read, "megabytes"), memory),
        "retention-forms.svg": line(
            "A whole text at once", ("tokens of the text", "times parallel at the left"), [*whole, *dots], log=True
        ),
    }


def decays(length: int = 128) -> None:
    """Draw the matrix D of four heads."""
    matrices = Decays(torch.arange(1, length + 1)[None], None, log_decays(HEADS)).inner[0]
    tiles = [
        Tile(enlarged(colorize(matrix.numpy()), 2), f"head {h}: keeps {2 ** (5 + h) - 1}/{2 ** (5 + h)} a step")
        for h, matrix in enumerate(matrices)
    ]
    drawn = sheet(
        tiles,
        columns=HEADS,
        title="What is left of a token, by how long ago it was",
        bar=Bar("0", "1", "share left"),
        axes=("token that is heard", "token that listens"),
        size=17,
    )
    drawn.save(IMAGES / "retention-decay.png", optimize=True)


PAGE = """# RetNet: what a step costs

```console
python bench/retention.py
```

{machine}, float32, processor time of one thread. Two models of width {width}, depth {depth} and {heads} heads: a RetNet
of {ours:.2f} M parameters without its table of tokens, and a decoder-only Transformer of {theirs:.2f} M that caches
keys and values; fresh weights, {batch} texts at a time. Times are ratios, not speeds: what matters is how they grow.

## One token at a time

A RetNet's step reads and writes one matrix a head, whatever it has read before. A Transformer's step reads the keys and
values of all tokens so far.

![Time of one more token against the tokens read](../images/retention-step-time.svg)

![Bytes remembered against the tokens read](../images/retention-step-memory.svg)

{rows}

Times are over the RetNet's first. At each place both models take {steps} steps in turns, of which the fastest counts;
in between they read many tokens at a time. Bytes are those of the state itself: the room that a growing cache keeps
ready is not counted.

From one end to the other, a step of the RetNet takes {flat:.2f} times as long as in the beginning, one of the
Transformer {grown:.1f} times. Keys and values of {even} tokens take as much as the matrices.

## A whole text at once

The parallel form holds a matrix of T x T a head; the chunkwise form one of {chunk} x {chunk}, and carries the state
from chunk to chunk. One text, without the output layer, the best of {rounds} rounds, over the parallel form at
{shortest} tokens.

![Time of a whole text in the three forms against its length](../images/retention-forms.svg)

{forms}

All three give the same numbers (`tests/nn/test_retention.py`), so that the form is chosen by length: `form="auto"`
takes the parallel one up to two chunks.
"""


def step_rows(times: dict[str, list[float]], sizes: dict[str, list[int]], places: list[int]) -> str:
    """Return the table of steps, at places that double."""
    rows = ["| tokens read | RetNet: time, bytes | Transformer: time, bytes |", "| --- | --- | --- |"]
    for i, place in enumerate(places):
        if i & (i - 1) == 0:  # 0, 1, 2, 4, ...
            cells = [f"{times[n][i] / times['RetNet'][0]:.2f}, {sizes[n][i]:,}" for n in NAMES]
            rows.append(f"| {place:,} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


def form_rows(forms: dict[str, list[tuple[int, float]]]) -> str:
    """Return the table of forms."""
    rows = ["| tokens | parallel | chunkwise | recurrent |", "| --- | --- | --- | --- |"]
    shortest = forms["parallel"][0][1]
    for i, (length, _) in enumerate(forms["parallel"]):
        rows.append(f"| {length:,} | " + " | ".join(f"{forms[f][i][1] / shortest:.1f}" for f in FORMS) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--decays", action="store_true")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--depth", type=int, default=DEPTH)
    parser.add_argument("--inner", type=int, default=INNER)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--every", type=int, default=256)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    if args.decays:
        decays()
        return
    if args.quick:
        args.width, args.depth, args.inner, args.tokens, args.lengths = 64, 2, 108, 512, [64, 128, 256]
    torch.set_num_threads(1)  # more would wait for each other, and their time is counted
    retnet, transformer = pair(args.width, args.depth, args.inner)
    own, cached = ([p.numel() for n, p in m.named_parameters() if "embed" not in n] for m in (retnet, transformer))
    with torch.inference_mode():
        times, sizes, places = read_on(args)
        forms = read_at_once(args)
    page = PAGE.format(
        machine=f"{platform.machine()}, torch {torch.__version__}",
        width=args.width,
        depth=args.depth,
        heads=HEADS,
        ours=sum(own) / 1e6,
        theirs=sum(cached) / 1e6,
        batch=args.batch,
        steps=args.steps,
        rounds=args.rounds,
        chunk=retnet.config.chunk_size,
        rows=step_rows(times, sizes, places),
        forms=form_rows(forms),
        shortest=args.lengths[0],
        flat=times["RetNet"][-1] / times["RetNet"][0],
        grown=times["Transformer"][-1] / times["Transformer"][0],
        even=round(sizes["RetNet"][-1] / sizes["Transformer"][-1] * places[-1]),
    )
    print(page)
    if args.quick:
        return
    for name, svg in pictures(times, sizes, places, forms).items():
        (IMAGES / name).write_text(svg + "\n", encoding="utf-8")
    decays()
    (ROOT / "docs" / "benchmarks" / "retention.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
