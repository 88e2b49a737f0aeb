"""What frozen features are worth: linear probe, nearest neighbours and few-shot, on features computed once."""

from __future__ import annotations

from .run import METHODS, ProbeReport, probe

__all__ = ["METHODS", "ProbeReport", "probe"]
