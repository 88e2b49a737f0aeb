"""Averages of weights, the greedy choice, and statistics measured anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from vitrail.classes import ClassMap
from vitrail.errors import DataError, WeightsError
from vitrail.models import create_model
from vitrail.weights import Card, open_folder, save_folder
from vitrail.weights.soup import average, greedy, has_statistics, measure_statistics, require_alike


def network(seed: int, name: str = "test_vit", **config: object) -> nn.Module:
    torch.manual_seed(seed)
    return create_model(name, num_classes=2, **config)


def test_the_mean_of_one_is_that_one_to_the_last_bit() -> None:
    state = {
        **network(0).state_dict(),
        "half": torch.randn(7).bfloat16(),
        "odd": torch.tensor([1e-42, 3e38, -0.1]),
        "count": torch.tensor(2**53 + 1),
    }
    found = average([state])
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
        assert found[name].data_ptr() != tensor.data_ptr()


def test_the_mean_of_three_is_the_mean_and_changes_no_member() -> None:
    states = [network(seed).state_dict() for seed in range(3)]
    before = [{n: t.clone() for n, t in state.items()} for state in states]
    found = average(iter(states))
    for name in found:
        want = torch.stack([state[name].double() for state in states]).mean(0).float()
        assert torch.equal(found[name], want), name
    assert all(torch.equal(s[n], b[n]) for s, b in zip(states, before, strict=True) for n in s)
    assert torch.equal(average(reversed(states))["head.weight"], found["head.weight"])


def test_counters_take_the_largest() -> None:
    found = average([{"n": torch.tensor(3)}, {"n": torch.tensor(9)}, {"n": torch.tensor(4)}])
    assert found["n"].item() == 9


def test_members_that_do_not_fit_are_named() -> None:
    with pytest.raises(WeightsError, match="at least one model"):
        average([])
    with pytest.raises(WeightsError, match="b is not in all of them"):
        average([{"a": torch.zeros(2)}, {"a": torch.zeros(2), "b": torch.zeros(2)}])
    with pytest.raises(WeightsError, match=r"expected a of shape \(2,\) in every member, got \(3,\)"):
        average([{"a": torch.zeros(2)}, {"a": torch.zeros(3)}])


def test_greedy_tries_from_the_best_and_keeps_what_does_not_harm() -> None:
    scores, tried = [0.5, 0.9, 0.7, 0.6], []
    reached = {(1, 2): 0.85, (1, 3): 0.9, (1, 3, 0): 0.95}  # worse: left out; equal: kept; better: kept

    def measure(chosen: tuple[int, ...]) -> float:
        tried.append(chosen)
        return reached[chosen]

    assert greedy(scores, measure) == ((1, 3, 0), 0.95)
    assert tried == [(1, 2), (1, 3), (1, 3, 0)]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_never_below_its_best_member(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(6, generator=g).tolist()
    kept, score = greedy(scores, lambda chosen: float(torch.rand((), generator=g)))
    assert score >= max(scores)
    assert scores[kept[0]] == max(scores)


def saved(path: Path, model: nn.Module, names: tuple[str, ...] | None = ("across", "down"), **card: object) -> Path:
    own = replace(Card(name="test_vit", input_size=(32, 32), num_classes=2), **card)
    return save_folder(path, model, card=own, classes=None if names is None else ClassMap.of(names))


def test_what_differs_between_members_is_named(tmp_path: Path) -> None:
    first = saved(tmp_path / "a", network(0))
    others = {
        "depth: 2 in a, 3 in b": saved(tmp_path / "b", network(0, depth=3)),
        "type: 'ViTConfig' in a, 'ResNetConfig' in b": saved(tmp_path / "c", network(0, "test_resnet")),
        r"card\.mean: \(0\.5, 0\.5, 0\.5\) in a, \(0\.1, 0\.1, 0\.1\) in b": saved(
            tmp_path / "d", network(0), mean=(0.1,) * 3
        ),
        "got b, which has none": saved(tmp_path / "e", network(0), names=None),
    }
    for words, folder in others.items():
        with pytest.raises(WeightsError, match=words):
            require_alike("ab", [open_folder(first), open_folder(folder)])
    with pytest.raises(DataError, match="only in b: up"):
        require_alike("ab", [open_folder(first), open_folder(saved(tmp_path / "f", network(0), ("across", "up")))])
    require_alike("ab", [open_folder(first), open_folder(saved(tmp_path / "g", network(1, drop_path_rate=0.2)))])


def test_statistics_are_the_plain_mean_over_the_batches() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3), nn.Dropout(0.5)).train()
    model[2].eval()
    norm = model[1]
    norm.running_mean.fill_(7.0)
    assert isinstance(norm, nn.BatchNorm2d)
    batches = [torch.randn(4, 3, 5, 5) * (i + 1) + i for i in range(3)]
    measure_statistics(model, batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    each = [b.transpose(0, 1).flatten(1).var(1) for b in batches]
    torch.testing.assert_close(norm.running_var, torch.stack(each).mean(0))
    assert norm.momentum == 0.1
    assert [m.training for m in model] == [True, True, False]


def test_only_models_with_batch_norms_have_statistics() -> None:
    assert has_statistics(network(0, "test_coatnet"))
    assert not has_statistics(network(0))
