"""Overlap, surface distances and calibration of segmentations, per case and per structure.

Definitions, for prediction P and reference R of one structure:

- Dice 2|P&R| / (|P|+|R|) and Jaccard |P&R| / |P|R|; both 1 when P and R are empty.
- The surface of a mask: its voxels with a background voxel, or the image's border, among their face neighbours.
- 95HD: the 95th percentile (linear interpolation) of the distances from each surface voxel of P to the surface of R,
  the same from R to P, and the larger of the two: ``monai.metrics.compute_hausdorff_distance(percentile=95)``.
- ASD, symmetric: the mean over the surface voxels of both masks together of their distance to the other surface:
  ``monai.metrics.compute_average_surface_distance(symmetric=True)``.
- ``hd95_medpy`` and ``asd_medpy`` are what ``medpy.metric.binary.hd95`` and ``asd`` compute, for setting beside the
  tables of papers that use them: the 95th percentile of the distances of *both* directions pooled, and the mean
  distance from P's surface to R's alone, which does not see what of R was left out. ``_voxels``: the same with every
  voxel a unit cube, as medpy measures without a spacing. medpy raises an error when a mask is empty; papers leave such
  cases out, or do not say.
- Distances are 0 when both masks are empty, and the image's diagonal (the worst there can be) when exactly one is: a
  missed structure makes the mean worse, it never drops out of it. This holds for medpy's distances here too.
- ECE, classwise ECE, Brier and NLL: see ``common/evaluation/calibration.py``; of the network's own probabilities and,
  ``*_calibrated``, after temperature scaling, where ``calibrating`` was run.

No metric is ever NaN. A calibration error of a case without any foreground voxel does not exist, nor one after
temperature scaling where there is none: None, and an empty cell in the CSV file.

:data:`METRICS` is the one table: columns of the CSV file, the summary, the report and the comparison follow from it. A
new metric is a function and a row there.
"""

from __future__ import annotations

from .cases import CaseTable, read_rows, write_rows
from .structures import Case, MaskPair, image_diagonal, surface_distances
from .summary import MEAN_STRUCTURE, Summary, bootstrap_interval, metric_name, summarise
from .table import METRICS, Metric, Row, csv_columns, metrics_shown, structure_metrics

__all__ = [
    "MEAN_STRUCTURE",
    "METRICS",
    "Case",
    "CaseTable",
    "MaskPair",
    "Metric",
    "Row",
    "Summary",
    "bootstrap_interval",
    "csv_columns",
    "image_diagonal",
    "metric_name",
    "metrics_shown",
    "read_rows",
    "structure_metrics",
    "summarise",
    "surface_distances",
    "write_rows",
]
