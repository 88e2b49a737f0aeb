"""Flat masters against torch's own AdamW on the model, parameter by parameter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.models import create_model
from vitrail.training.defaults import Facts
from vitrail.training.ema import Ema
from vitrail.training.groups import decays, split
from vitrail.training.optim import Masters
from vitrail.training.recipe import Recipe

from .fakes import ONE_RATE
from .test_defaults import settle

# eps is large because the true gradient of a key bias is zero: a small one would blow rounding noise up to a full step
SETTINGS = SimpleNamespace(name="adamw", betas=(0.9, 0.99), eps=1e-4, weight_decay=0.1, **ONE_RATE)


def vit(name: str = "test_vit") -> nn.Module:
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, init_values=0.5)
    torch.nn.init.normal_(model.head.weight)  # a head of zeros would send no gradient to the rest
    return model


def backward(model: nn.Module, seed: int = 1) -> None:
    g = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    model(torch.randn(4, 3, 32, 32, generator=g).to(dtype)).float().square().mean().backward()


def test_groups_by_name() -> None:
    model = create_model("test_deit_distilled", num_classes=4, init_values=0.1)
    decayed = {n for n, p in model.named_parameters() if decays(n, p)}
    assert "blocks.0.attn.qkv.weight" in decayed
    assert "patch_embed.proj.weight" in decayed
    assert "head.weight" in decayed
    rest = {n for n, _ in model.named_parameters()} - decayed
    assert {"cls_token", "dist_token", "pos_embed", "blocks.0.ls1.gamma", "norm.weight", "head.bias"} <= rest
    assert all(n.endswith("weight") for n in decayed)


@pytest.mark.parametrize("name", ["test_swin", "test_coatnet"])
def test_tables_of_relative_positions_do_not_decay(name: str) -> None:
    model = create_model(name)
    tables = {n for n, _ in model.named_parameters() if n.endswith(".table")}
    assert tables
    assert not {n for n, p in model.named_parameters() if decays(n, p)} & tables
    assert tables <= split(model, "muon")["plain"].keys()


def test_equals_torch_adamw_step_by_step() -> None:
    ours, theirs = vit(), vit()
    masters = Masters(ours, SETTINGS)
    named = dict(theirs.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if decays(n, p) is wanted], "weight_decay": decay}
        for wanted, decay in ((True, 0.1), (False, 0.0))
    ]
    adamw = torch.optim.AdamW(groups, betas=SETTINGS.betas, eps=SETTINGS.eps, foreach=False)
    for step in range(4):
        for model in (ours, theirs):
            backward(model, step)
        masters.gather()
        norm = masters.norm()
        want = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        assert norm == pytest.approx(float(want), rel=1e-5)
        masters.update(0.01, scale=min(1.0, 0.5 / (norm + 1e-6)))
        for group in adamw.param_groups:
            group["lr"] = 0.01
        adamw.step()
        adamw.zero_grad()
    assert masters.updates == 4
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=name)


def test_gathered_gradients_are_summed_in_float32() -> None:
    model = vit()
    masters = Masters(model, SETTINGS, torch.bfloat16)
    each: list[dict[str, Tensor]] = []
    for seed in range(3):
        backward(model, seed)
        each.append({n: p.grad.float().clone() for n, p in model.named_parameters() if p.grad is not None})
        masters.gather()
    got = masters.named([w.grad for w in masters.weights])
    for name in each[0]:
        torch.testing.assert_close(got[name], each[0][name] + each[1][name] + each[2][name])
    assert all(p.grad is None for p in model.parameters())


def test_bf16_weights_are_the_rounded_masters_and_small_steps_are_not_lost() -> None:
    model = vit()
    masters = Masters(model, SETTINGS, torch.bfloat16)
    start = [w.detach().clone() for w in masters.weights]
    for seed in range(3):
        backward(model, seed)
        masters.gather()
        masters.update(1e-6)  # far below what bfloat16 can add to a weight of 0.1
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    named = masters.named([w.detach() for w in masters.weights])
    for name, p in model.named_parameters():
        assert torch.equal(p, named[name].bfloat16()), name
    moved = torch.cat([(w - s).abs() for w, s in zip(masters.weights, start, strict=True)])
    assert 1e-6 < moved.max() < 1e-5


def test_a_second_model_attached_shares_memory() -> None:
    model, other = vit(), vit()
    masters = Masters(model, SETTINGS)
    masters.attach(other, [w.detach() for w in masters.weights])
    backward(model)
    masters.gather()
    masters.update(0.1)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert a.data_ptr() == b.data_ptr()


def test_ema_is_the_warmed_up_average() -> None:
    model = vit()
    masters = Masters(model, SETTINGS)
    ema = Ema(masters, 0.5)
    want = [b.clone() for b in ema.buffers]
    for seed, decay in enumerate((2 / 11, 3 / 12, 4 / 13)):
        backward(model, seed)
        masters.gather()
        masters.update(0.05)
        ema.update()
        want = [decay * a + (1 - decay) * w.detach() for a, w in zip(want, masters.weights, strict=True)]
    for a, b in zip(ema.buffers, want, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Ema(masters, 1.0)


class Blocks(nn.Module):
    """The names and shapes that the split goes by."""

    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 8))
        self.qkv = nn.Linear(8, 24)
        self.fc = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(self.fc(q * k + v).relu())


MUON = SimpleNamespace(name="muon", betas=(0.9, 0.99), eps=1e-4, weight_decay=0.1, **ONE_RATE, momentum=0.9)


def test_muon_takes_the_matrices_and_adamw_the_rest():
    groups = split(Blocks(), "muon")
    assert set(groups["matrices"]) == {"qkv.weight", "fc.weight"}
    assert set(groups["decayed"]) == {"head.weight"}
    assert set(groups["plain"]) == {"pos_embed", "qkv.bias", "fc.bias", "head.bias"}


def test_muon_on_flat_masters_equals_torch_on_each_matrix():
    torch.manual_seed(3)
    ours, theirs = Blocks(), Blocks()
    theirs.load_state_dict(ours.state_dict())
    masters = Masters(ours, MUON)
    parts = [nn.Parameter(p.detach().clone()) for p in (*theirs.qkv.weight.chunk(3), theirs.fc.weight)]
    peer = torch.optim.Muon(parts, lr=0.01, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
        ours(x).square().sum().backward()
        gradients = [*ours.qkv.weight.grad.chunk(3), ours.fc.weight.grad]
        for part, gradient in zip(parts, gradients, strict=True):
            part.grad = gradient.clone()
        masters.gather()
        masters.update(0.01)
        peer.step()
    torch.testing.assert_close(ours.qkv.weight, torch.cat(parts[:3]))
    torch.testing.assert_close(ours.fc.weight, parts[3])
    assert {name.partition(".")[0] for name in masters.moments()} == {"momentum", "exp_avg", "exp_avg_sq"}


def test_momentum_without_muon_is_an_error():
    with pytest.raises(UsageError, match="momentum has no effect with name: adamw"):
        Recipe.load({"optim.name": "adamw", "optim.momentum": 0.9}, environment={})
    assert settle(Facts(32, 32, 1000, 10), **{"optim.name": "muon"}).optim.momentum == 0.95


def test_batch_norms_stay_float32_to_the_last_bit_in_bf16() -> None:
    model = create_model("test_coatnet", num_classes=4)
    norm = model.stages[0].blocks[0].norm1
    with torch.no_grad():
        norm.running_mean.fill_(1 + 2**-12)  # bfloat16 would round it to 1
    masters = Masters(model, SETTINGS, torch.bfloat16)
    assert model.stem.conv1.weight.dtype == torch.bfloat16
    assert norm.weight.dtype == norm.running_mean.dtype == torch.float32
    assert bool((norm.running_mean == 1 + 2**-12).all())
    before = norm.weight.detach().clone()
    model(torch.randn(4, 3, 32, 32).bfloat16()).float().square().sum().backward()
    masters.gather()
    masters.update(0.1)
    assert not torch.equal(norm.weight, before)
    assert not bool((norm.running_mean == 1 + 2**-12).any())


def test_batch_norms_and_tables_are_not_decayed_and_convolutions_are_muons() -> None:
    groups = split(create_model("test_coatnet", num_classes=4), "muon")
    assert all("norm" in name for name in groups["batch_norms"])
    assert "stages.0.blocks.0.norm1.weight" in groups["batch_norms"]
    assert "stages.2.blocks.0.positions.table" in groups["plain"]
    assert {"stem.conv1.weight", "stages.0.blocks.0.expand.weight"} <= groups["matrices"].keys()
    assert {"stages.0.blocks.0.depthwise.weight", "head.weight"} <= groups["decayed"].keys()


def test_ema_averages_running_statistics_too() -> None:
    model = create_model("test_coatnet", num_classes=4)
    masters = Masters(model, SETTINGS)
    buffers = {n: b for n, b in model.named_buffers() if "running" in n or "num_batches" in n}
    ema = Ema(masters, 0.5, buffers)
    start = ema.statistics["stem.norm1.running_mean"].clone()
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    masters.gather()
    masters.update(0.1)
    ema.update()
    moved = model.stem.norm1.running_mean
    torch.testing.assert_close(ema.statistics["stem.norm1.running_mean"], start.lerp(moved, 1 - 2 / 11))
    assert int(ema.statistics["stem.norm1.num_batches_tracked"]) == 1
