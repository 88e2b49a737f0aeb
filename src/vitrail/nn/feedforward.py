"""The position-wise feed-forward network.

Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.3; GELU: Hendrycks and Gimpel, arXiv 1606.08415.

B batch, N tokens, C width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Gelu = Literal["erf", "tanh"]


class FeedForward(nn.Module):
    """Linear, GELU, Linear on each token by itself.

    Args:
        dim: width C of the tokens.
        hidden_dim: width of the hidden layer.
        gelu: "erf", the exact function (PyTorch's models), or "tanh", its approximation (Flax's default).
        drop: dropout after each of the two layers.
    """

    def __init__(self, dim: int, hidden_dim: int, *, gelu: Gelu = "erf", drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.approximate = {"erf": "none", "tanh": "tanh"}[gelu]
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        hidden = self.drop(F.gelu(self.fc1(x), approximate=self.approximate))
        out: Tensor = self.drop(self.fc2(hidden))
        return out
