"""The engine on small made-up tables: both directions, and every way in which an account can fail to add up."""

from __future__ import annotations

import pytest
import torch

from vitrail.errors import WeightsError
from vitrail.weights.convert import (
    CONCAT,
    HWIO,
    Q_KV,
    SQUEEZE_1X1,
    TRANSPOSE,
    Entry,
    Table,
    account,
    batch_norm,
    detect,
    excuse_head,
    module,
    own_table,
    plan,
    require_complete,
    require_finite,
    require_shapes,
    to_ours,
    to_theirs,
)

TABLE = Table(
    "made up",
    "a made-up library",
    (
        Entry("token", ("tok",)),
        Entry("stem", ("root/kernel",), HWIO),
        *module("blocks.{i}.qkv", "enc.{i}.q", "enc.{i}.k", "enc.{i}.v", transform=CONCAT),
        Entry("blocks.{i}.fc", ("stack/fc",), TRANSPOSE),
        *module("head", "classifier"),
    ),
    ignored=("*position_ids",),
)


def ours():
    g = torch.Generator().manual_seed(0)
    tensors = {"token": (1, 1, 4), "stem": (4, 3, 2, 2), "head.weight": (5, 4), "head.bias": (5,)}
    for i in range(11):  # more than ten: layers must be ordered as numbers
        tensors |= {f"blocks.{i}.qkv.weight": (12, 4), f"blocks.{i}.qkv.bias": (12,), f"blocks.{i}.fc": (6, 4)}
    return {k: torch.randn(s, generator=g) for k, s in tensors.items()}


def test_round_trip_and_layout():
    mine = ours()
    theirs = to_theirs(TABLE, mine, {})
    assert theirs["root/kernel"].shape == (2, 2, 3, 4)
    assert theirs["stack/fc"].shape == (11, 4, 6)
    assert torch.equal(theirs["stack/fc"][10], mine["blocks.10.fc"].T)
    assert torch.equal(theirs["enc.3.k.weight"], mine["blocks.3.qkv.weight"][4:8])
    found = account(plan(TABLE, mine), theirs)
    assert found.faults == 0
    back = to_ours(found, theirs, {})
    assert back.keys() == mine.keys()
    assert all(torch.equal(back[k], mine[k]) for k in mine)


def test_each_source_name_is_used_once():
    mine = ours()
    theirs = to_theirs(TABLE, mine, {})
    used = [name for job in plan(TABLE, mine).jobs for name in job.theirs]
    assert sorted(used) == sorted(theirs)


def test_unequal_parts():
    t = torch.arange(9.0)
    q, kv = Q_KV.to_theirs(t, 2, {})
    assert q.tolist() == [0, 1, 2]
    assert torch.equal(Q_KV.to_ours([q, kv], {}), t)


STAGED = Table(
    "staged",
    "a library of stages",
    (
        *module("stages.{i}.blocks.{j}.fc", "layer{i+1}/unit{j+1:02}/fc"),
        Entry("stages.{i}.blocks.{j}.mlp.0.weight", ("layer{i+1}/unit{j+1:02}/conv",), SQUEEZE_1X1),
        *module("stages.0.down", "stem"),
        *module("stages.{i}.down", "down{i-1}"),
        *batch_norm("norms.{i}", "bn{i}"),
    ),
)


def staged():
    names = [f"stages.{i}.blocks.{j}.{part}" for i in range(2) for j in range(12) for part in ("fc.weight", "fc.bias")]
    names += [f"stages.{i}.blocks.{j}.mlp.0.weight" for i in range(2) for j in range(12)]
    names += [f"stages.{i}.down.{kind}" for i in range(3) for kind in ("weight", "bias")]
    names += [f"norms.1.{kind}" for kind in ("weight", "bias", "running_mean", "running_var")]
    return {name: torch.full((3, 2) if name.endswith("weight") else (3,), float(k)) for k, name in enumerate(names)}


def test_two_numbers_with_offsets_and_widths():
    mine = staged()
    theirs = to_theirs(STAGED, mine, {})
    assert torch.equal(theirs["layer2/unit12/fc.bias"], mine["stages.1.blocks.11.fc.bias"])
    assert torch.equal(theirs["layer1/unit03/fc.weight"], mine["stages.0.blocks.2.fc.weight"])
    assert theirs["layer1/unit01/conv"].shape == (3, 2, 1, 1)
    assert torch.equal(theirs["stem.bias"], mine["stages.0.down.bias"])  # a number spelt out comes before {i}
    assert torch.equal(theirs["down1.bias"], mine["stages.2.down.bias"])
    back = to_ours(account(plan(STAGED, mine), theirs), theirs, {})
    assert back.keys() == mine.keys()
    assert all(torch.equal(back[k], mine[k]) for k in mine)


def test_a_kernel_that_is_not_1x1_is_not_squeezed_away():
    assert SQUEEZE_1X1.to_ours([torch.ones(3, 2, 3, 3)], {}).shape == (3, 2, 3, 3)


def test_counters_of_batch_norms_are_in_no_account():
    """Neither asked of a file nor unexpected in one; zeros where the other library expects them."""
    mine = staged()
    theirs = to_theirs(STAGED, mine | {"norms.1.num_batches_tracked": torch.tensor(7)}, {})
    assert theirs["bn1.num_batches_tracked"].dtype == torch.int64
    assert theirs["bn1.num_batches_tracked"] == 0
    for file in (theirs, {k: v for k, v in theirs.items() if "tracked" not in k}):
        found = account(plan(STAGED, [*mine, "norms.1.num_batches_tracked"]), file)
        assert (found.faults, found.ignored) == (0, [])


def test_our_own_table_names_everything_once():
    mine = staged()
    table = own_table([*STAGED.entries, *STAGED.entries])
    assert to_theirs(table, mine, {}).keys() == mine.keys() | {"norms.1.num_batches_tracked"}


@pytest.mark.parametrize(
    ("ours", "theirs"), [("a.{i}", "b.{j}"), ("a.{i}.{j}", "b.{i}"), ("a.{i}.{j}", "b"), ("a.{i+1}", "b.{i}")]
)
def test_numbers_that_do_not_fit_are_refused_at_once(ours, theirs):
    with pytest.raises(ValueError, match="numbers of"):
        Entry(ours, (theirs,))


def test_missing_and_unexpected_are_named():
    mine = ours()
    theirs = to_theirs(TABLE, mine, {}) | {"enc.3.k_weight": torch.ones(1), "a.position_ids": torch.ones(1)}
    del theirs["enc.3.k.weight"]
    found = account(plan(TABLE, mine), theirs)
    assert found.missing == ["enc.3.k.weight"]
    assert found.unexpected == ["enc.3.k_weight"]
    assert found.ignored == ["a.position_ids"]
    with pytest.raises(WeightsError, match=r"missing: enc\.3\.k\.weight") as caught:
        require_complete(found, "x.pth")
    assert "Did you mean 'enc.3.k.weight'" in str(caught.value)


def test_a_model_part_without_a_name_is_a_fault_both_ways():
    mine = ours() | {"gate.weight": torch.ones(1)}
    assert plan(TABLE, mine).unmapped == ["gate.weight"]
    with pytest.raises(WeightsError, match=r"no place for gate\.weight"):
        to_theirs(TABLE, mine, {})


def test_detection_picks_the_table_and_the_prefix():
    prefixed = Table("other", "other", tuple(Entry(e.ours, (e.ours,)) for e in TABLE.entries), prefixes=("", "opt/"))
    mine = ours()
    assert detect([prefixed, TABLE], mine, to_theirs(TABLE, mine, {})).table is TABLE
    found = detect([TABLE, prefixed], mine, {f"opt/{k}" for k in mine})
    assert (found.table, found.prefix, found.faults) == (prefixed, "opt/", 0)


def test_a_stack_of_another_depth_is_refused():
    mine = ours()
    theirs = to_theirs(TABLE, mine, {})
    theirs["stack/fc"] = theirs["stack/fc"][:7]
    with pytest.raises(WeightsError, match="stack 11 layers"):
        to_ours(account(plan(TABLE, mine), theirs), theirs, {})


def test_a_tensor_that_cannot_be_reshaped_is_named():
    mine = ours()
    theirs = to_theirs(TABLE, mine, {})
    theirs["root/kernel"] = torch.ones(4, 3)
    with pytest.raises(WeightsError, match=r"cannot make stem from root/kernel \(4, 3\)"):
        to_ours(account(plan(TABLE, mine), theirs), theirs, {})


@pytest.mark.parametrize(("has_head", "new_head"), [(True, True), (False, False)])
def test_a_head_may_be_left_out_only_on_request(has_head, new_head):
    mine = ours()
    theirs = to_theirs(TABLE, mine, {})
    if has_head:
        theirs = {k: v for k, v in theirs.items() if not k.startswith("classifier")}
    else:
        mine = {k: v for k, v in mine.items() if not k.startswith("head")}
    found = account(plan(TABLE, mine), theirs)
    assert found.faults == 2
    new = excuse_head(found, model_has_head=has_head, new_head=new_head)
    assert found.faults == 0
    assert new == (["head.weight", "head.bias"] if has_head else [])
    assert found.ignored == ([] if has_head else ["classifier.weight", "classifier.bias"])


def test_a_missing_head_without_request_stays_a_fault():
    mine = ours()
    theirs = {k: v for k, v in to_theirs(TABLE, mine, {}).items() if not k.startswith("classifier")}
    found = account(plan(TABLE, mine), theirs)
    excuse_head(found, model_has_head=True, new_head=False)
    with pytest.raises(WeightsError, match="classifier"):
        require_complete(found, "x")


def test_shapes_and_values_are_checked():
    with pytest.raises(WeightsError, match=r"a: expected \(2, 3\), got \(3, 2\)"):
        require_shapes({"a": torch.ones(3, 2)}, {"a": torch.Size((2, 3))}, "x")
    for bad in (float("nan"), float("inf")):
        with pytest.raises(WeightsError, match="NaN or infinity in a"):
            require_finite({"a": torch.tensor([1.0, bad])}, "x")
    with pytest.raises(WeightsError, match=r"torch\.int64 for a"):
        require_finite({"a": torch.tensor([1])}, "x")
