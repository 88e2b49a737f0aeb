"""Recomputed and compiled blocks: the same gradients, names, statistics and copies as the plain network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.models import create_model
from vitrail.training.blocks import blocks_of
from vitrail.training.groups import batch_norms
from vitrail.training.optim import to_type
from vitrail.training.rework import rework

FAMILIES = (
    "test_vit",
    "test_swin",
    "test_pvt",
    "test_pvt_v2",
    "test_coatnet",
    "test_resnet",
    "test_bit",
    "test_hybrid",
)


inside_torch = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # dynamo's own


def network(name: str, dtype: torch.dtype = torch.float32, drop_path: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, img_size=32, drop_path_rate=drop_path).train()
    for p in model.parameters():  # heads that start at zero would give the blocks no gradient
        nn.init.normal_(p, std=0.2) if p.ndim > 1 else None
    to_type(model, dtype)
    return model


def gradients(model: nn.Module, images: Tensor, seed: int = 1) -> dict[str, Tensor]:
    """Return the gradients of a step on ``images``, and the running statistics after it."""
    torch.manual_seed(seed)
    model(images.to(next(model.parameters()).dtype)).float().square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found | {f"buffer {name}": b.clone() for name, b in model.named_buffers()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_recomputed_gradients_are_the_same_bits(name: str, dtype: torch.dtype, images: Tensor) -> None:
    plain, light = network(name, dtype), network(name, dtype)
    rework(light, recompute=True, compile=False)
    for seed in (1, 2):  # running statistics of the first step are in the second
        expected = gradients(plain, images, seed)
        assert any(v.abs().max() > 0 for k, v in expected.items() if "buffer" not in k)
        assert same(gradients(light, images, seed), expected)


def test_drop_path_is_drawn_again_as_it_was(images: Tensor) -> None:
    light = network("test_vit")
    rework(light, recompute=True, compile=False)
    assert not same(gradients(light, images, 1), gradients(light, images, 2)), (
        "no drop path: the test above says little"
    )


def test_less_is_kept_for_the_backward_pass(images: Tensor) -> None:
    def kept(model: nn.Module) -> int:
        seen: dict[int, int] = {}
        weights = {p.untyped_storage()._cdata for p in model.parameters()}

        def pack(t: Tensor) -> Tensor:
            seen[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(images)
        return sum(size for key, size in seen.items() if key not in weights)

    light = network("test_vit")
    rework(light, recompute=True, compile=False)
    assert kept(light) < 0.3 * kept(network("test_vit"))


@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_nothing_is_recomputed_without_need(mode: str, images: Tensor) -> None:
    model, runs = network("test_vit"), []
    rework(model, recompute=True, compile=False)
    block = next(iter(blocks_of(model).values()))
    block.norm1.register_forward_hook(lambda *_: runs.append(1))
    if mode == "eval":
        model.eval()(images).sum().backward()
    else:
        with torch.no_grad():
            model(images)
    assert len(runs) == 1
    model.train()(images).sum().backward()
    assert len(runs) == 3


def test_a_batch_counts_once_in_the_running_statistics(images: Tensor) -> None:
    model = network("test_resnet")
    rework(model, recompute=True, compile=False)
    gradients(model, images)
    assert all(int(norm.num_batches_tracked) == 1 for norm in batch_norms(model))


@inside_torch
@pytest.mark.parametrize("compile", [False, True])
def test_names_and_copies_stay_sound(compile: bool, images: Tensor) -> None:
    model = network("test_vit")
    names = list(model.state_dict())
    rework(model, recompute=True, compile=compile, backend="eager")
    twin = copy.deepcopy(model)
    assert list(model.state_dict()) == list(twin.state_dict()) == names
    before = gradients(model, images)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert same(gradients(model, images), before), "the copy shares weights with the model"
    assert not same(gradients(twin, images), before), "the copy still computes with the model's weights"


def test_a_network_without_blocks_cannot_recompute() -> None:
    with pytest.raises(UsageError, match="no effect"):
        rework(nn.Linear(2, 2), recompute=True, compile=False)
    with pytest.raises(UsageError, match="no effect"):
        rework(network("test_vit").requires_grad_(False), recompute=True, compile=False)


class Whole(nn.Module):
    """A network without a list of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())


@inside_torch
def test_a_network_without_blocks_is_compiled_whole() -> None:
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = Whole()
    x = torch.randn(3, 2)
    expected = model(x)
    rework(model, recompute=False, compile=True, backend=backend)
    assert torch.allclose(model(x), expected)
    assert len(graphs) == 1
    assert list(model.state_dict()) == ["one.weight", "one.bias", "two.weight", "two.bias"]


@inside_torch
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_gradients_are_eager_ones_to_rounding(recompute: bool, images: Tensor) -> None:
    """Dynamo and the autograd graphs are the real ones; inductor's C++ would take minutes."""
    torch._dynamo.reset()
    plain, fast = network("test_vit", drop_path=0.0), network("test_vit", drop_path=0.0)
    rework(fast, recompute=recompute, compile=True, backend="aot_eager")
    expected, found = gradients(plain, images), gradients(fast, images)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max())), name


@inside_torch
def test_equal_blocks_share_one_graph_whatever_their_drop_path(images: Tensor) -> None:
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = create_model("vit_pico_patch4_32", num_classes=4, img_size=32, drop_path_rate=0.3, depth=12).train()
    rework(model, recompute=False, compile=True, backend=backend)
    model(images)
    assert len(graphs) == 3  # without drop path; with it; the last block, of which the head reads one token


@inside_torch
def test_compiled_drop_path_keeps_the_mean(images: Tensor) -> None:
    model = network("test_vit", drop_path=0.5)
    path = blocks_of(model)["blocks.1"].drop_path1
    rework(model, recompute=False, compile=True, backend="eager")
    torch.manual_seed(0)
    out = path(torch.ones(4000, 2, 3))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert abs(float(out.mean()) - 1.0) < 0.1
    assert torch.equal(path.eval()(images), images)
