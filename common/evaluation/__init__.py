"""Measuring what was trained: evaluators, metrics, calibration, comparisons, reports."""
