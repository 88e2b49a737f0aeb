"""Retention: attention without the softmax, whose whole past fits into one matrix a head.

Source: Sun et al. 2023, arXiv 2307.08621, section 2: equation 5 (parallel), 6 (recurrent), 7 (chunkwise), 8 (several
scales, the norm a head and the gate). The angles of the rotation, the norm without a weight and what the scores are
divided by are those of torchscale, the authors' code.

One sum, ``o_n = s_n^-1/2 · sum over m <= n of gamma^(n - m) (q_n · k_m) v_m``, is computed in three orders: by rows of
one (T, T) matrix, by steps of one (D, E) matrix, or by chunks with both. ``s_n``, the sum of the decays, keeps the size
of ``o_n`` the same at any length; the norm behind it takes the rest.

B batch, T tokens, C width, H heads, D width of a head's queries and keys, E width of a head's values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import require_heads
from .fused import Linear

Form = Literal["auto", "parallel", "recurrent", "chunkwise"]
Normaliser = Literal["none", "signed", "absolute"]

MOST = 5e4  # what the sum of a row's sizes is cut at, in torchscale since November 2023


def log_decays(num_heads: int) -> Tensor:
    """Return ``ln(gamma)`` of each head, (H,) float64: ``gamma = 1 - 2 ** (-5 - h)``, for h = 0 .. H - 1."""
    return torch.log1p(-_forgotten(num_heads))


def _forgotten(num_heads: int) -> Tensor:
    """Return ``1 - gamma`` of each head, (H,) float64: exact even where gamma itself would round to 1."""
    return 2.0 ** (-5.0 - torch.arange(num_heads, dtype=torch.float64))


def rotation_angles(width: int) -> Tensor:
    """Return the angle a step turns each pair of channels by, (width / 2,) float64: 1 down to exactly 1e-4."""
    if width % 2:
        raise ValueError(f"expected an even width of a head's queries and keys, which turn in pairs, got {width}")
    return 10000.0 ** -torch.linspace(0, 1, width // 2, dtype=torch.float64)


@dataclass
class RetentionState:
    """What one layer remembers, at any length: the sum of ``gamma^(n - m) k_m v_mᵀ`` over what it has read.

    Attributes:
        matrix: that sum, (B, H, D, E), float32 or wider; None as long as nothing was read. E is one more where rows are
            normalised by their signed sum.
        count: tokens written so far in each row, (B,) int64; None likewise.
    """

    matrix: Tensor | None = None
    count: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        """Keep the rows ``rows`` (b,) int64, in that order, repeats allowed: in place."""
        if self.matrix is not None and self.count is not None:
            self.matrix, self.count = self.matrix[rows], self.count[rows]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in (self.matrix, self.count) if part is not None)


class Decays:
    """How much is left of what was written, within one piece of the text and across it.

    Args:
        steps: tokens written in the piece up to and with each one, (B or 1, T) int64.
        keep: (B, T) bool, True where a token is written; None if all are.
        log_decay: ``ln(gamma)``, (H,).

    Attributes:
        since: what is left, at each token, of what was there before the piece, (B or 1, H, T, 1).
        until: what is left of each token at the end of the piece, 0 where none is written, (B or 1, H, T, 1).
        whole: what is left, at the end of the piece, of what was there before, (B or 1, H, 1, 1).
    """

    def __init__(self, steps: Tensor, keep: Tensor | None, log_decay: Tensor) -> None:
        self._steps, self._keep, self._log_decay = steps[:, None, :, None], keep, log_decay[:, None, None]
        self._inner: Tensor | None = None
        self.since = torch.exp(self._steps * self._log_decay)
        self.until = torch.exp((self._steps[:, :, -1:] - self._steps) * self._log_decay)
        if keep is not None:
            self.until = self.until * keep[:, None, :, None]
        self.whole = self.since[:, :, -1:]

    @property
    def inner(self) -> Tensor:
        """The matrix D, (B or 1, H, T, T): ``gamma ** (n - m)`` for m <= n, else 0."""
        if self._inner is None:
            apart = (self._steps - self._steps.mT).clamp(min=0)
            matrix = torch.exp(apart * self._log_decay).tril()
            self._inner = matrix if self._keep is None else matrix * self._keep[:, None, None]
        return self._inner


class Places:
    """Where the tokens of one call stand: what all layers of a network share, computed once.

    Args:
        x: tokens (B, T, C), of which shape, type and device are read.
        num_heads: heads H.
        width: width D of a head's queries and keys.
        count: tokens written before in each row, (B,) int64; default none.
        keep: (B, T) bool, True where a token is real. The others are neither written nor counted, wherever they
            stand: what is real gets the numbers it would get without them.

    Attributes:
        count: tokens written up to and with each one, (B or 1, T) int64.
        scale: ``s_n ** -0.5``, (B or 1, H, T, 1): ``s_n`` is the sum of the decays of all tokens written so far.
        dtype: float32, or wider if the tokens are.

    Raises:
        ValueError: a ``keep`` of another type or shape.
    """

    def __init__(
        self, x: Tensor, num_heads: int, width: int, *, count: Tensor | None = None, keep: Tensor | None = None
    ) -> None:
        if keep is not None and (keep.dtype != torch.bool or keep.shape != x.shape[:2]):
            raise ValueError(
                f"expected keep to be bool of shape {tuple(x.shape[:2])}, True where a token is real;"
                f" got {keep.dtype} of {tuple(keep.shape)}"
            )
        device = x.device
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.keep = keep
        self._steps = torch.arange(1, x.shape[1] + 1, device=device)[None] if keep is None else keep.cumsum(1)
        self.count = self._steps if count is None else count[:, None] + self._steps
        self._log_decay = log_decays(num_heads).to(device, self.dtype)
        self.scale = self._scale(_forgotten(num_heads).to(device, self.dtype))
        exact = torch.float32 if device.type == "mps" else torch.float64  # a far place times an angle needs the digits
        angle = rotation_angles(width).to(device, exact).repeat_interleave(2)
        phase = (self.count - 1).clamp(min=0).to(exact)[:, None, :, None] * angle
        self._sin, self._cos = phase.sin().to(self.dtype), phase.cos().to(self.dtype)
        self._decays: dict[tuple[int, int], Decays] = {}

    def rotate(self, x: Tensor) -> Tensor:
        """Turn each pair of channels of (B, H, T, D) by its place."""
        turned = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
        return (x * self._cos + turned * self._sin).to(x.dtype)

    def _scale(self, forgotten: Tensor) -> Tensor:
        total = -torch.expm1(self.count[:, None] * self._log_decay[:, None]) / forgotten[:, None]
        return total.clamp(min=1.0).rsqrt()[..., None]

    def decays(self, start: int, end: int) -> Decays:
        """Return the decays of the tokens from ``start`` up to ``end``; pieces of one length share them."""
        key = (0, end - start) if self.keep is None else (start, end)
        if key not in self._decays:
            steps = self._steps[:, slice(*key)]
            keep = None if self.keep is None else self.keep[:, slice(*key)]
            earlier = 0 if keep is None or not start else self._steps[:, start - 1 : start]
            self._decays[key] = Decays(steps - earlier, keep, self._log_decay)
        return self._decays[key]


def parallel(
    q: Tensor, k: Tensor, v: Tensor, places: Places, matrix: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Equation 5: ``(q kᵀ ⊙ D) v``, all tokens at once, in time and room T².

    Args:
        q: queries (B, H, T, D), rotated.
        k: keys (B, H, T, D), rotated.
        v: values (B, H, T, E).
        places: where the tokens stand.
        matrix: what earlier tokens wrote, (B, H, D, E); None if there are none, and nobody reads on afterwards.

    Returns:
        The sums (B, H, T, E), not yet scaled; and the matrix after the last token, or None.
    """
    decays = places.decays(0, q.shape[2])
    out = _among(q, k, v, decays)
    if matrix is None:
        return out, None
    return out + _read(q, decays, matrix), _write(k, v, decays, matrix)


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, places: Places, matrix: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Equation 6: ``S = gamma S + k vᵀ``, ``o = q S``, token by token, in time T and no room but S.

    Arguments and results are those of :func:`parallel`.
    """
    matrix = _nothing(k, v, places) if matrix is None else matrix
    outs = []
    for t in range(q.shape[2]):
        decays = places.decays(t, t + 1)
        q_t, k_t, v_t = (part[:, :, t : t + 1].to(matrix.dtype) for part in (q, k, v))
        k_t = k_t if places.keep is None else k_t * decays.until
        matrix = torch.addcmul(matrix * decays.whole, k_t.mT, v_t)
        outs.append((q_t @ matrix).to(q.dtype))
    return torch.cat(outs, 2) if outs else v, matrix


def chunkwise(
    q: Tensor, k: Tensor, v: Tensor, places: Places, matrix: Tensor | None = None, *, size: int
) -> tuple[Tensor, Tensor | None]:
    """Equation 7: parallel within chunks of ``size`` tokens, recurrent from each to the next; time and room T · size.

    The other arguments and the results are those of :func:`parallel`.
    """
    length, wanted = q.shape[2], matrix is not None
    matrix = _nothing(k, v, places) if matrix is None else matrix
    outs = []
    for start in range(0, length, size):
        end = min(start + size, length)
        decays = places.decays(start, end)
        q_c, k_c, v_c = (part[:, :, start:end] for part in (q, k, v))
        outs.append(_among(q_c, k_c, v_c, decays) + _read(q_c, decays, matrix))
        if wanted or end < length:
            matrix = _write(k_c, v_c, decays, matrix)
    return torch.cat(outs, 2) if outs else v, matrix if wanted else None


def _among(q: Tensor, k: Tensor, v: Tensor, decays: Decays) -> Tensor:
    """What the tokens of a piece say to each other."""
    return (q @ k.mT * decays.inner.to(q.dtype)) @ v


def _read(q: Tensor, decays: Decays, matrix: Tensor) -> Tensor:
    """What was written says to the tokens of a piece."""
    return (q * decays.since.to(q.dtype)) @ matrix.to(q.dtype)


def _write(k: Tensor, v: Tensor, decays: Decays, matrix: Tensor) -> Tensor:
    """Return the matrix after a piece; products are of the type of k and v, their sum over the text is wider."""
    return matrix * decays.whole + (k * decays.until.to(k.dtype)).mT @ v


def _nothing(k: Tensor, v: Tensor, places: Places) -> Tensor:
    return k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1], dtype=places.dtype)


class Retention(nn.Module):
    """Multi-scale retention: heads that forget at different rates, a norm a head, a gate.

    Queries and keys are turned by their places, so that a product knows how far apart two tokens are; all projections
    are without bias.

    Args:
        dim: width C of the tokens.
        num_heads: heads H; must divide ``dim`` and ``value_dim``, ``dim`` into even widths.
        value_dim: width H · E of all values together; default ``2 * dim``, the paper's.
        eps: epsilon of the norm of each head.
        normaliser: what the sums are divided by before the norm; it matters only beside ``eps``. "none";
            "signed", the sum of a row's scores, where its size is above 1 (torchscale 0.3.0 in its parallel form);
            "absolute", the sum of their sizes (torchscale since November 2023), which the parallel form alone can know.
        chunk_size: tokens of a chunk.
        form: the form taken where a call names none. "auto": recurrent for one token, parallel up to two chunks,
            chunkwise above.

    Raises:
        ValueError: widths that the heads do not divide.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        value_dim: int | None = None,
        eps: float = 1e-6,
        normaliser: Normaliser = "none",
        chunk_size: int = 128,
        form: Form = "auto",
    ) -> None:
        super().__init__()
        values = 2 * dim if value_dim is None else value_dim
        require_heads([dim, values], [num_heads, num_heads])
        rotation_angles(dim // num_heads)
        self.num_heads = num_heads
        self.width = dim // num_heads
        self.normaliser = normaliser
        self.chunk_size = chunk_size
        self.form = form
        self.q = Linear(dim, dim, bias=False)
        self.k = Linear(dim, dim, bias=False)
        self.v = Linear(dim, values, bias=False)
        self.gate = Linear(dim, values, bias=False)
        self.norm = nn.RMSNorm(values // num_heads, eps=eps, elementwise_affine=False)
        self.proj = Linear(values, dim, bias=False)

    def new_memory(self) -> RetentionState:
        """Return the state before any token."""
        return RetentionState()

    def places(self, x: Tensor, memory: RetentionState | None = None, keep: Tensor | None = None) -> Places:
        """Return where the tokens ``x`` (B, T, C) stand, after those of ``memory``; the same for all layers alike."""
        return Places(x, self.num_heads, self.width, count=None if memory is None else memory.count, keep=keep)

    def forward(
        self,
        x: Tensor,
        memory: RetentionState | None = None,
        *,
        keep: Tensor | None = None,
        places: Places | None = None,
        form: Form | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C), each token from itself and those before it.

        Args:
            x: tokens.
            memory: what earlier tokens left, from :meth:`new_memory`; moved on in place.
            keep: (B, T) bool, True where a token is real; the others are neither written nor counted.
            places: what :meth:`places` gave for tokens like these, ``memory`` and ``keep``; default computed here.
            form: how to compute it; default as the layer was made. The numbers are the same.
        """
        places = self.places(x, memory, keep) if places is None else places
        q = places.rotate(self._split(self.q(x)))
        k = places.rotate(self._split(self.k(x)) * self.width**-0.5)
        v = self._split(self.v(x))
        if self.normaliser == "signed":  # a value of ones sums up the scores
            v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        form = self._form(form or self.form, x.shape[1])
        out = self._retain(form, q, k, v, places, memory)
        out = self._normalise(out * places.scale, q, k, places, whole=form == "parallel" and memory is None)
        gated: Tensor = self.proj(F.silu(self.gate(x)) * out.transpose(1, 2).flatten(2).to(x.dtype))
        return gated

    def _retain(
        self, form: Form, q: Tensor, k: Tensor, v: Tensor, places: Places, memory: RetentionState | None
    ) -> Tensor:
        """Return the sums (B, H, T, E) in the form asked for, and move ``memory`` on."""
        matrix = None if memory is None else _nothing(k, v, places) if memory.matrix is None else memory.matrix
        if form == "chunkwise":
            out, matrix = chunkwise(q, k, v, places, matrix, size=self.chunk_size)
        else:
            out, matrix = (parallel if form == "parallel" else recurrent)(q, k, v, places, matrix)
        if memory is not None and q.shape[2]:
            memory.matrix, memory.count = matrix, places.count[:, -1].expand(len(q))
        return out

    def _form(self, form: Form, length: int) -> Form:
        if form not in get_args(Form):
            raise ValueError(f"expected a form of {', '.join(get_args(Form))}, got {form!r}")
        if form != "auto":
            return form
        if length == 1:
            return "recurrent"
        return "parallel" if length <= 2 * self.chunk_size else "chunkwise"

    def _normalise(self, out: Tensor, q: Tensor, k: Tensor, places: Places, *, whole: bool) -> Tensor:
        """Divide each row (B, H, T, E) by what the normaliser says, and by its root mean square."""
        if self.normaliser == "signed":
            out = out[..., :-1] / out[..., -1:].detach().abs().clamp(min=1.0)
        elif self.normaliser == "absolute" and whole:
            with torch.no_grad():
                sizes = (q @ k.mT * places.decays(0, q.shape[2]).inner).abs().sum(-1, keepdim=True)
            out = out / (sizes * places.scale).clamp(1.0, MOST)
        normed: Tensor = self.norm(out)
        return normed

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, H · D) -> (B, H, T, D)."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
