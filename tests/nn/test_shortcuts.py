"""Shortcuts are not taken where somebody could tell: layers that are replaced, pruned, hooked into, traced, counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from vitrail.models import create_model, image_variants
from vitrail.nn import feedforward, fused
from vitrail.nn.relative import relative_index

SMALL = sorted(n for n in image_variants() if n.startswith("test_"))
IMAGES = torch.randn(2, 3, 40, 36, generator=torch.Generator().manual_seed(0))


def randomised(name: str) -> nn.Module:
    """Return a small model whose every parameter counts."""
    torch.manual_seed(0)
    model = create_model(name)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


class Shifted(fused.Linear):
    """What an adapter does: another layer in the place of one, with its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1.0


class ShiftedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1.0


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("test_vit", "blocks.0.mlp.fc1"),
        ("test_vit", "patch_embed.proj"),
        ("test_swin", "patch_embed.proj"),
        ("test_pvt", "stages.0.blocks.0.attn.qkv"),
        ("test_pvt", "stages.0.blocks.0.reduce.proj"),
        ("test_pvt_v2", "stages.0.blocks.0.mlp.dwconv"),
        ("test_pvt_v2_li", "stages.0.blocks.0.mlp.fc1"),
        ("test_pvt_v2_li", "stages.0.blocks.0.reduce.proj"),
        ("test_coatnet", "stages.0.0.expand"),
        ("test_resnet", "stages.0.0.conv1"),
    ],
)
@pytest.mark.parametrize("grad", [False, True])
def test_a_layer_that_is_replaced_or_pruned_counts(name: str, path: str, grad: bool) -> None:
    model = randomised(name)
    paths = dict(model.named_modules())
    if path not in paths:  # stages are nested otherwise
        last = path.rpartition(".")[2]
        path = next(p for p, m in paths.items() if p.endswith(last) and "stem" not in p and hasattr(m, "weight"))
    owner, attribute = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
    layer = model.get_submodule(path)
    with torch.set_grad_enabled(grad):
        before = model(IMAGES)
        kind = type(layer)
        layer.__class__ = Shifted if isinstance(layer, nn.Linear) else type("Other", (ShiftedConv, kind), {})
        setattr(owner, attribute, layer)
        assert not torch.equal(model(IMAGES), before), "an adapter does something"
        layer.__class__ = kind
        torch.testing.assert_close(model(IMAGES), before)
        prune.random_unstructured(layer, "weight", 0.5)
        pruned = model(IMAGES)
        assert not torch.equal(pruned, before)
        layer.weight_orig.data.mul_(2.0)
        assert not torch.equal(model(IMAGES), pruned), "the weight is made anew from what is trained"
    if grad:
        for _ in range(2):
            model(IMAGES).sum().backward()
        assert layer.weight_orig.grad is not None


def test_norms_in_train_mode_are_not_taken_for_fixed() -> None:
    plain, model = randomised("test_coatnet"), randomised("test_coatnet")
    for each in (plain, model):
        for m in each.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.train()
    for m in plain.modules():
        m.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), plain(IMAGES), atol=1e-5, rtol=1e-4)
    statistics = [(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True) if a.is_floating_point()]
    assert statistics
    for a, b in statistics:
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", [lambda c: nn.GroupNorm(2, c), lambda c: nn.BatchNorm2d(c, affine=False)])
@pytest.mark.parametrize("name", ["test_coatnet", "test_resnet"])
def test_other_norms_and_convolutions_work_in_evaluation(name: str, norm) -> None:
    model = randomised(name)
    for m in list(model.modules()):
        for key, child in list(m.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(m, key, norm(child.num_features))
            elif isinstance(child, nn.Conv2d) and child.groups == 1 and child.kernel_size == (3, 3):
                other = nn.Conv2d(child.in_channels, child.out_channels, 3, child.stride, child.padding)
                setattr(m, key, other)
    model.eval()
    with torch.no_grad():
        quick = model(IMAGES)
    torch.testing.assert_close(quick, model(IMAGES).detach(), atol=1e-5, rtol=1e-4)


def test_autocast_runs_feed_forward_networks_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedforward, "PIECE", 4)
    monkeypatch.setattr(feedforward, "HIDDEN", 64)
    for name in ("test_pvt_v2", "test_vit"):
        model = randomised(name)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = model(IMAGES)
        with torch.no_grad():
            torch.testing.assert_close(found.float(), model(IMAGES), atol=0.2, rtol=0.2)


@pytest.mark.parametrize("name", ["test_swin", "test_coatnet", "test_coatnet_rw"])
def test_fake_tensors_are_not_kept_for_real_ones(name: str) -> None:
    odd = torch.randn(1, 3, 52, 44)
    model = randomised(name)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model(odd)
    with torch.no_grad():
        assert type(model(odd)) is Tensor


@pytest.mark.parametrize("name", SMALL)
def test_a_counter_of_operations_sees_the_same_with_and_without_gradients(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "LARGE", 1)
    model, counts = randomised(name), []
    for m in model.modules():  # so that the last block's work is not left out
        m.register_forward_hook(lambda *_: None)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            model(IMAGES)
        counts.append(counter.get_total_flops())
    # with a bias that is learned, gradients need plain products; torch's counter leaves out what the fused kernel does
    assert counts[0] == pytest.approx(counts[1], rel=0.12)


@pytest.mark.parametrize("name", SMALL)
def test_what_a_hook_keeps_is_not_written_over(name: str) -> None:
    model, kept = randomised(name), []

    def keep(module: nn.Module, given: object, out: object) -> None:
        if isinstance(out, Tensor):
            kept.append((module, out, out.detach().clone()))

    for m in model.modules():
        if not list(m.children()):
            m.register_forward_hook(keep)
    with torch.no_grad():
        model(IMAGES)
    assert kept
    assert all(torch.equal(now, then) for _, now, then in kept)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # offsets of positions take no gradient
@pytest.mark.parametrize("name", SMALL)
def test_full_backward_hooks_fire(name: str) -> None:
    model, seen = randomised(name).train(), []
    for m in model.modules():
        if not list(m.children()) and list(m.parameters()):
            m.register_full_backward_hook(lambda module, *_: seen.append(module))
    out = model(IMAGES.clone().requires_grad_())
    sum(F.relu(o).sum() for o in (out if isinstance(out, tuple) else (out,))).backward()
    assert seen


@pytest.mark.parametrize("name", SMALL)
def test_an_empty_batch_gives_empty_logits(name: str) -> None:
    with torch.no_grad():
        assert randomised(name)(IMAGES[:0]).shape == (0, 10)


def test_relative_positions_stay_on_the_table_s_device() -> None:
    assert relative_index((3, 4), torch.device("meta")).is_meta
    assert relative_index((3, 4), torch.device("cpu")).device.type == "cpu"


def test_pvt_s_last_stage_can_be_hooked_into() -> None:
    model, seen = randomised("test_pvt"), []
    model.stages[-1].blocks.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    with torch.no_grad():
        model(IMAGES)
    assert len(seen) == 1
