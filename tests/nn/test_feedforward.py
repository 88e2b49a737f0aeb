"""The feed-forward network in pieces equals the whole one."""

from __future__ import annotations

import torch

from vitrail.nn import FeedForward, feedforward


def test_pieces_of_many_tokens_add_up(monkeypatch):
    mlp, x = FeedForward(8, 32).eval(), torch.randn(2, 5, 7, 8)
    whole = mlp(x).detach()
    monkeypatch.setattr(feedforward, "PIECE", 16)  # 70 tokens: four pieces and a rest
    monkeypatch.setattr(feedforward, "FRESH", 70 * 32 * 4)
    seen = []
    run = mlp._run
    monkeypatch.setattr(mlp, "_run", lambda part: (seen.append(len(part)), run(part))[1])
    with torch.inference_mode():
        torch.testing.assert_close(mlp(x), whole)
    assert seen == [16, 16, 16, 16, 6]
    seen.clear()
    mlp(x)
    assert len(seen) == 1, "what a backward pass needs is kept whole"
    seen.clear()
    mlp.fc2.register_forward_hook(lambda module, given, out: seen.append(tuple(given[0].shape)))
    with torch.inference_mode():
        mlp(x)
    assert seen[1:] == [(2, 5, 7, 32)], "whoever hooks into a layer sees it whole"
