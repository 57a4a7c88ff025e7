"""Adaptive Label Correction: the method and its equations."""
