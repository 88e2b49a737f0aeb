"""Tasks: one file each, a loss, metrics and postprocess. A task maps a model's output to losses and results.

A task never imports a model class; the one training loop and the predictor see only the protocol below.
"""

from __future__ import annotations

from .base import Losses, Metrics, Task, create_task, headline, headline_words

__all__ = ["Losses", "Metrics", "Task", "create_task", "headline", "headline_words"]
