"""From a data set to settings: what fits the images, the labels, the memory and the time there is."""

from __future__ import annotations

from .make import Plan, make_plan

__all__ = ["Plan", "make_plan"]
