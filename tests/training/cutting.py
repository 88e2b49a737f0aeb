"""A run that is interrupted and resumed, beside the same run that is not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vitrail.training import train
from vitrail.training.loop import Loop
from vitrail.training.run import resume
from vitrail.training.signals import Interrupted


def require_resumed_equals_uninterrupted(settings: dict[str, Any], out: Path, at: int) -> None:
    """Train twice into ``out``, once stopped after ``at`` steps and resumed: every weight is the same to the bit."""
    settings = {**settings, "out": str(out)}
    whole = train({**settings, "name": "whole"}, say=str)
    take = Loop._one_step

    def stop(self: Loop, batch: Any, kept: Any) -> None:
        take(self, batch, kept)
        if self.state.step == at:
            self.hooks.save(wait=True)
            raise Interrupted("stopped", 130)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_one_step", stop)
        with pytest.raises(Interrupted):
            train({**settings, "name": "cut"}, say=str)
    again = resume(whole.folder.parent / "cut", say=str)
    one, other = (load_file(r.folder / "last" / "model.safetensors") for r in (whole, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
