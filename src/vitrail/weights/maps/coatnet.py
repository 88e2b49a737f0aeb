"""Tables for CoAtNet: timm is the only library with public weights.

Source of the names: timm 1.0 ``MaxxVit``. Its linear layers are 1x1 convolutions, and its fused projection holds q, k
and v of one head side by side.
"""

from __future__ import annotations

from torch import Tensor

from vitrail.weights.tables import SAME, SQUEEZE_1X1, Entry, Numbers, Table, Transform, batch_norm, module, own_table


def _ours(rows: Tensor, numbers: Numbers) -> Tensor:
    """(head, q k v, channel) -> (q k v, head, channel); a kernel's last two axes are of length 1."""
    heads = rows.reshape(-1, 3, numbers["head_dim"], *rows.shape[1:2])
    return heads.transpose(0, 1).reshape(rows.shape[:2])


def _theirs(rows: Tensor, numbers: Numbers) -> Tensor:
    heads = rows.reshape(3, -1, numbers["head_dim"], *rows.shape[1:])
    turned = heads.transpose(0, 1).reshape(rows.shape)
    return turned[:, :, None, None] if rows.ndim > 1 else turned


HEAD_FIRST = Transform(
    "a fused projection, head by head", lambda parts, n: _ours(parts[0], n), lambda t, count, n: [_theirs(t, n)]
)

_BLOCK = "stages.{i}.blocks.{j}"


def _linear(name: str, theirs: str) -> tuple[Entry, Entry]:
    """A linear layer that is a 1x1 convolution in timm."""
    weight, bias = (f"{_BLOCK}.{name}.{kind}" for kind in ("weight", "bias"))
    return (
        Entry(weight, (f"{_BLOCK}.{theirs}.weight",), SQUEEZE_1X1),
        Entry(bias, (f"{_BLOCK}.{theirs}.bias",), SAME),
    )


def _same(name: str) -> Entry:
    return Entry(name, (name,))


def _entries(gate: str, norm: str) -> tuple[Entry, ...]:
    """The whole network; squeeze-excitation and the last norm have two names each."""
    block, attn = _BLOCK, f"{_BLOCK}.attn"
    return (
        _same("stem.conv1.weight"),
        *batch_norm("stem.norm1", "stem.norm1"),
        _same("stem.conv2.weight"),
        *_linear("shortcut.expand", "shortcut.expand"),
        *batch_norm(f"{block}.pre_norm", f"{block}.pre_norm"),
        *_linear("expand", "conv1_1x1"),
        *batch_norm(f"{block}.norm1", f"{block}.norm1"),
        Entry(f"{block}.depthwise.weight", (f"{block}.conv2_kxk.weight",)),
        *batch_norm(f"{block}.norm2", f"{block}.norm2"),
        *_linear("gate.fc1", f"{gate}.fc1"),
        *_linear("gate.fc2", f"{gate}.fc2"),
        *_linear("project", "conv3_1x1"),
        *batch_norm(f"{block}.norm1.norm", f"{block}.norm1.norm"),
        *module(f"{attn}.qkv", f"{attn}.qkv", transform=HEAD_FIRST),
        *_linear("attn.proj", "attn.proj"),
        Entry(f"{block}.positions.table", (f"{attn}.rel_pos.relative_position_bias_table",)),
        *module(f"{block}.positions.fc1", f"{attn}.rel_pos.mlp.fc1"),
        *module(f"{block}.positions.fc2", f"{attn}.rel_pos.mlp.fc2"),
        *_linear("mlp.fc1", "mlp.fc1"),
        *_linear("mlp.fc2", "mlp.fc2"),
        _same(f"{block}.ls1.gamma"),
        _same(f"{block}.ls2.gamma"),
        *batch_norm("norm", norm),
        *module("pre_logits.0", "head.pre_logits.fc"),
        *module("head", "head.fc"),
    )


TIMM_PAPER = Table("timm", "timm CoAtNet with a hidden layer in its head", _entries("se", "head.norm"))
TIMM_RW = Table("timm", "timm CoAtNet (rw)", _entries("se", "norm"))
TIMM_RW_EARLY = Table("timm", "timm CoAtNet (rw, early gate)", _entries("se_early", "norm"))

TABLES: tuple[Table, ...] = (own_table(TIMM_RW.entries), TIMM_PAPER, TIMM_RW, TIMM_RW_EARLY)
