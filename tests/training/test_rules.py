"""Each optimiser on the flat buffer against a peer on separate parameters, or against its paper's formula."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitrail.training.groups import Group, groups_of, layers_of, sentences
from vitrail.training.habits import ALL_OPTIONS, HABITS
from vitrail.training.optim import Masters
from vitrail.training.recipe import Recipe
from vitrail.training.rules import adafactor

from .fakes import ONE_RATE

LR = 0.01


def settings(name: str, **more: Any) -> SimpleNamespace:
    options = {key: HABITS[name].options.get(key) for key in ALL_OPTIONS}
    return SimpleNamespace(**{"name": name, "weight_decay": 0.1, **ONE_RATE, **options, **more})


class Net(nn.Module):
    """A fused projection and a matrix large enough to be factored, a vector, and a small head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(40, 120)
        self.fc = nn.Linear(40, 33)
        self.head = nn.Linear(33, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        out: Tensor = self.head(self.fc(q * k + v).tanh())
        return out


def pair() -> tuple[Net, Net]:
    torch.manual_seed(3)
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def backward(model: nn.Module, seed: int) -> None:
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed))
    model(x).square().sum().backward()


def walk(ours: nn.Module, masters: Masters, theirs: nn.Module, step: Any, steps: int = 5) -> None:
    for seed in range(steps):
        for model in (ours, theirs):
            backward(model, seed)
        masters.gather()
        masters.update(LR)
        step()
        theirs.zero_grad()


def in_two_groups(model: nn.Module) -> list[dict[str, Any]]:
    named = model.named_parameters
    return [
        {"params": [p for _, p in named() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for _, p in named() if p.ndim == 1], "weight_decay": 0.0},
    ]


def same(ours: nn.Module, theirs: nn.Module, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, False), (0.9, True), (0.0, False)])
def test_sgd_equals_torch(momentum: float, nesterov: bool) -> None:
    ours, theirs = pair()
    masters = Masters(ours, settings("sgd", momentum=momentum, nesterov=nesterov))
    peer = torch.optim.SGD(in_two_groups(theirs), lr=LR, momentum=momentum, nesterov=nesterov)
    walk(ours, masters, theirs, peer.step)
    same(ours, theirs)
    assert len(masters.moments()) == (6 if momentum else 0)


def test_lion_follows_its_algorithm() -> None:
    ours, theirs = pair()
    masters = Masters(ours, settings("lion"))
    average = {n: torch.zeros_like(p) for n, p in theirs.named_parameters()}

    @torch.no_grad()
    def step() -> None:
        for name, p in theirs.named_parameters():
            assert p.grad is not None
            look = 0.9 * average[name] + 0.1 * p.grad
            p -= LR * (look.sign() + (0.1 if p.ndim > 1 else 0.0) * p)
            average[name] = 0.99 * average[name] + 0.01 * p.grad

    walk(ours, masters, theirs, step)
    same(ours, theirs)
    for name, view in masters.moments().items():
        torch.testing.assert_close(view, average[name.removeprefix("average.")])


class ThreeApart(nn.Module):
    """``Net`` with q, k and v as parameters of their own."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(p.detach().clone()) for p in net.qkv.weight.chunk(3)])
        self.bias, self.fc, self.head = nn.Parameter(net.qkv.bias.detach().clone()), net.fc, net.head

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = nn.functional.linear(x, torch.cat(list(self.parts)), self.bias).chunk(3, -1)
        out: Tensor = self.head(self.fc(q * k + v).tanh())
        return out


def against_transformers(ours: Net, theirs: Net) -> nn.Module:
    """Walk both with Adafactor; return theirs. A peer without the half precision, the cap and the least side."""
    from transformers.optimization import Adafactor

    masters, apart = Masters(ours, settings("adafactor")), ThreeApart(theirs)
    peer = Adafactor(
        in_two_groups(apart), lr=LR, clip_threshold=1e9, beta1=0.9, scale_parameter=False, relative_step=False,
        warmup_init=False,
    )  # fmt: skip
    walk(ours, masters, apart, peer.step)
    return apart


def test_adafactor_equals_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adafactor, "MOMENTUM_TYPE", torch.float32)
    monkeypatch.setattr(adafactor, "SMALLEST", 2)
    ours, theirs = pair()
    apart = against_transformers(ours, theirs)
    torch.testing.assert_close(ours.qkv.weight, torch.cat(list(apart.parts)), rtol=1e-4, atol=2e-5)
    same(ours.fc, apart.fc, rtol=1e-4, atol=2e-5)
    same(ours.head, apart.head, rtol=1e-4, atol=2e-5)


def test_adafactor_remembers_rows_columns_and_half_a_momentum() -> None:
    ours, theirs = pair()
    start = ours.fc.weight.detach().clone()
    masters = Masters(ours, settings("adafactor"))
    shapes = {name: tuple(view.shape) for name, view in masters.moments().items()}
    assert shapes["rows.qkv.weight"] == (120, 1)
    assert shapes["columns.qkv.weight"] == (3, 40)
    assert shapes["square.head.weight"] == (3, 33)
    assert shapes["square.fc.bias"] == (33,)
    momenta = [view for name, view in masters.moments().items() if name.startswith("momentum.")]
    assert {view.dtype for view in momenta} == {torch.bfloat16}
    rest = sum(v.numel() for v in masters.moments().values()) - sum(v.numel() for v in momenta)
    assert rest < 0.15 * sum(p.numel() for p in ours.parameters())
    exact = against_transformers(ours, theirs)
    moved = (ours.fc.weight - start).norm()
    assert (ours.fc.weight - exact.fc.weight).norm() < 0.05 * moved  # half precision, and the head's squares whole


def test_the_decay_of_adafactors_squares_ends_at_beta_2() -> None:
    ours, _ = pair()
    masters = Masters(ours, settings("adafactor", betas=(0.9, 0.5)))
    seen = []
    for seed in range(4):
        backward(ours, seed)
        assert ours.head.bias.grad is not None
        seen.append(ours.head.bias.grad.square())
        masters.gather()
        masters.update(LR)
    want = seen[0]
    for t, square in enumerate(seen[1:], start=2):
        decay = min(0.5, 1 - t**-0.8)
        want = decay * want + (1 - decay) * square
    torch.testing.assert_close(masters.moments()["square.head.bias"], want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(HABITS))
def test_moments_restored_go_on_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    def run(model: nn.Module, masters: Masters, seeds: range) -> None:
        for seed in seeds:
            x = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed)).to(dtype)
            model(x).float().square().sum().backward()
            masters.gather()
            masters.update(LR)

    whole, again = pair()
    first, second = Masters(whole, settings(name), dtype), Masters(again, settings(name), dtype)
    run(whole, first, range(3))
    with torch.no_grad():
        saved = {n: t.clone() for n, t in first.moments().items()}
        for mine, theirs in zip(second.weights, first.weights, strict=True):
            mine.copy_(theirs)
        for n, target in second.moments().items():
            target.copy_(saved[n])
    second.set_updates(first.updates)
    second.write_back()
    run(whole, first, range(3, 6))
    run(again, second, range(3, 6))
    for a, b in zip(first.weights, second.weights, strict=True):
        assert torch.equal(a, b)


# Groups.


def test_layer_decay_and_head_decay_equal_adamw_with_parameter_groups() -> None:
    from vitrail.models import create_model

    def build() -> nn.Module:
        torch.manual_seed(0)
        model = create_model("test_vit", num_classes=4)
        nn.init.normal_(model.head.weight)
        return model

    ours, theirs = build(), build()
    own = settings("adamw", eps=1e-2, layer_decay=0.5, head_weight_decay=0.3)
    masters = Masters(ours, own)
    layers = {"blocks.0": 0.25, "blocks.1": 0.5, "norm": 1.0, "head": 1.0}  # the rest: 0.125
    groups = []
    for name, p in theirs.named_parameters():
        scale = next((s for start, s in layers.items() if name.startswith(f"{start}.")), 0.125)
        decayed = p.ndim > 1 and name not in ("cls_token", "pos_embed")
        decay = {"head.weight": 0.3}.get(name, 0.1) if decayed else 0.0
        groups.append({"params": [p], "lr": LR * scale, "weight_decay": decay})
    peer = torch.optim.AdamW(groups, betas=own.betas, eps=1e-2, foreach=False)
    for seed in range(5):
        x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        for model in (ours, theirs):
            model(x).square().mean().backward()
        masters.gather()
        masters.update(LR)
        peer.step()
        peer.zero_grad()
    same(ours, theirs, rtol=1e-4, atol=2e-6)


NUMBERS = {
    "test_vit": {"pos_embed": 0, "patch_embed.proj.weight": 0, "blocks.1.mlp.fc1.bias": 2, "norm.bias": 3,
                 "head.bias": 3},
    "test_swin": {"patch_embed.norm.bias": 0, "stages.0.blocks.1.norm1.bias": 2, "stages.1.merge.norm.bias": 2,
                  "stages.1.blocks.0.norm1.bias": 3, "norm.bias": 7, "head.weight": 7},
    "test_pvt": {"stages.0.patch_embed.proj.weight": 0, "stages.1.pos_embed": 1, "stages.1.blocks.0.norm1.bias": 2},
    "test_pvt_v2": {"stages.0.norm.weight": 1, "stages.3.norm.weight": 6, "head.bias": 6},
    "test_coatnet": {"stem.norm1.bias": 0, "stages.0.blocks.0.expand.weight": 1, "pre_logits.0.weight": 7},
    "test_hybrid": {"pos_embed": 0, "patch_embed.backbone.stem.conv.weight": 0, "patch_embed.patches.proj.weight": 3,
                    "blocks.0.norm1.weight": 4, "norm.weight": 6},
    "test_resnet": {"stem.conv.weight": 0, "stages.3.blocks.0.conv1.weight": 5, "head.weight": 6},
    "test_bit": {"stem.weight": 0, "norm.weight": 6},
    "test_deit_distilled": {"dist_token": 0, "head_dist.weight": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_layers_are_numbered_from_the_input(name: str) -> None:
    from vitrail.models import create_model

    found = layers_of(create_model(name, num_classes=4))
    assert {key: found[key] for key in NUMBERS[name]} == NUMBERS[name]
    assert set(found.values()) == set(range(max(found.values()) + 1))


def test_a_network_without_blocks_has_no_layers() -> None:
    with pytest.raises(Exception, match="layer_decay has no effect: Net has no blocks"):
        layers_of(Net())


def test_groups_are_told_by_rate_and_decay() -> None:
    from vitrail.models import create_model

    model = create_model("test_vit", num_classes=4)
    lines = sentences(groups_of(model, settings("adamw", layer_decay=0.5, head_weight_decay=0.0)))
    assert len(lines) == 7  # the head's weight joins what does not decay at the full rate
    assert lines[0].startswith("rate x 0.125, decay 0: ")
    total = sum(int(line.rpartition(": ")[2].split()[0].replace(",", "")) for line in lines)
    assert total == sum(p.numel() for p in model.parameters())


def test_without_layer_decay_the_groups_are_the_kinds() -> None:
    groups: list[Group] = groups_of(pair()[0], settings("muon"))
    assert [group.kind for group in groups] == ["matrices", "decayed", "plain"]
    assert {group.scale for group in groups} == {1.0}


@pytest.mark.parametrize(("name", "momentum"), [("adamw", None), ("muon", 0.95)])
def test_the_recipe_of_an_old_run_reads_as_it_was(name: str, momentum: float | None) -> None:
    old = {"name": name, "lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.1, "momentum": momentum}
    recipe = Recipe.load({"optim": old, "schedule": {"warmup_epochs": 0.5, "min_lr": 0.0}}, environment={})
    flat = {k: v for k, v in recipe.flat().items() if k.partition(".")[0] in ("optim", "schedule")}
    assert "auto" not in flat.values()
    new = ("optim.nesterov", "optim.layer_decay", "optim.head_weight_decay", "schedule.cooldown_epochs")
    assert {flat[key] for key in new} == {None}  # as absent, which resuming compares them with
