"""The drawing of one slice, which every page with pictures of cases shares, and the legend that goes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from .panels import structure_colour

__all__ = ["MASK_STYLES", "case_legend", "draw_case"]

MASK_STYLES: dict[str, Any] = {
    "label": "solid",
    "prediction": (0, (2.0, 1.0)),
    "proposed": (0, (2.0, 1.0)),
    "reference": (0, (0.8, 0.8)),
}
"""Line style of each kind of mask; a name not listed takes the next of ``_OTHER_STYLES``."""

_OTHER_STYLES: tuple[Any, ...] = ((0, (4.0, 1.0, 1.0, 1.0)), (0, (6.0, 1.5)), (0, (1.0, 2.0)))
UNCERTAINTY_MAP = "inferno"


def _line_styles(names: Sequence[str]) -> dict[str, Any]:
    """Line style of each mask name: the known one, else the next unused one."""
    unknown = [name for name in names if name not in MASK_STYLES]
    return {
        name: MASK_STYLES[name] if name in MASK_STYLES else _OTHER_STYLES[unknown.index(name) % len(_OTHER_STYLES)]
        for name in names
    }


def _draw_contour(ax: Axes, mask: NDArray[np.bool_], colour: str, style: Any, width: float) -> None:
    """Outline of a binary mask, closed at the picture's border too, on a dark casing that keeps it visible."""
    padded = np.pad(mask, 1).astype(np.float32)
    rows, columns = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
    # a little inside the mask, so that outlines of touching structures lie beside and not on top of each other, all
    # casings below all outlines
    level, casing = [0.7], (0.0, 0.0, 0.0, 0.6)
    ax.contour(
        columns, rows, padded, levels=level, colors=[casing], linewidths=width + 1.0, linestyles="solid", zorder=2
    )
    ax.contour(columns, rows, padded, levels=level, colors=[colour], linewidths=width, linestyles=[style], zorder=3)


def _draw_overlay(
    ax: Axes, overlay: NDArray[Any], value_range: tuple[float, float] | None, aspect: float
) -> ScalarMappable:
    """Colour a map over the picture; opacity follows the value, so that the image shows where the map is low."""
    values = np.where(np.isfinite(overlay), overlay, 0.0).astype(np.float32)
    low, high = value_range or (0.0, float(values.max()))
    norm = Normalize(low, high if high > low else low + 1.0)
    colours = ScalarMappable(norm, UNCERTAINTY_MAP)
    strength = np.clip(norm(values).filled(0.0), 0.0, 1.0)
    rgba = colours.to_rgba(values)
    rgba[..., 3] = 0.9 * strength**0.6
    ax.imshow(rgba, aspect=aspect, interpolation="nearest")
    return colours


def draw_case(
    ax: Axes,
    image_2d: NDArray[Any],
    masks: Mapping[str, NDArray[Any]],
    overlay: NDArray[Any] | None = None,
    aspect: float = 1.0,
    title: str = "",
    labels: Mapping[int, str] | None = None,
    *,
    overlay_range: tuple[float, float] | None = None,
    window: tuple[float, float] | None = None,
    filled: Sequence[str] = (),
    outlines: Mapping[str, str] | None = None,
    line_width: float = 1.1,
) -> ScalarMappable | None:
    """Draw one slice in grey with the outlines of label maps and, if given, a map coloured over it.

    A structure has the same colour on every page (:func:`structure_colour` of its value), a kind of mask the same
    line style (:data:`MASK_STYLES`). Row 0 of the arrays is at the top.

    Args:
        ax: axes to draw in; ticks and frame are removed.
        image_2d: intensities, (rows, columns).
        masks: name ("label", "prediction", "proposed", ...) to integer label map (rows, columns), 0 = background.
        overlay: uncertainty or suspicion per pixel, (rows, columns), at least 0; NaN is left transparent.
        aspect: height of a pixel over its width, from the spacing: row spacing / column spacing.
        title: text above the picture.
        labels: value to name of the structures to outline; default: every non-zero value found in ``masks``.
        overlay_range: values at the two ends of the colour scale, to share one scale between pictures; default: 0
            and the largest value of ``overlay``.
        window: intensities shown black and white; default: 1st and 99th percentile of ``image_2d``.
        filled: names of the masks to tint, with solid outlines.
        outlines: mask name to one colour for all its outlines, where the structures' own would be hard to tell from
            an overlay or from another mask.
        line_width: of the outlines, in points.

    Returns:
        what ``figure.colorbar`` needs to explain the overlay, or None without overlay.

    Raises:
        ValueError: if a mask or the overlay has not the shape of the image.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().add_subplot()
        >>> label = np.zeros((8, 8), int)
        >>> label[2:5, 2:5] = 1
        >>> draw_case(ax, np.zeros((8, 8)), {"label": label}, title="case 1", labels={1: "atrium"})
    """
    for name, array in {**masks, **({} if overlay is None else {"overlay": overlay})}.items():
        if array.shape != image_2d.shape or image_2d.ndim != 2:
            raise ValueError(f"{name} {array.shape} and image {image_2d.shape} must have the same 2D shape")
    low, high = window or tuple(np.percentile(image_2d, (1, 99)))
    grey = Normalize(low, high if high > low else low + 1.0)
    ax.imshow(image_2d, cmap="gray", norm=grey, aspect=aspect, interpolation="nearest")
    colours = None if overlay is None else _draw_overlay(ax, overlay, overlay_range, aspect)
    values = sorted(labels) if labels else sorted({int(v) for mask in masks.values() for v in np.unique(mask)})
    styles = _line_styles(list(masks))
    for name, mask in masks.items():
        for value in values:
            if value == 0 or not (mask == value).any():
                continue
            if name in filled:
                tint = np.where((mask == value)[..., None], to_rgba(structure_colour(value), 0.3), 0.0)
                ax.imshow(tint, aspect=aspect, interpolation="nearest")
            colour = (outlines or {}).get(name, structure_colour(value))
            _draw_contour(ax, mask == value, colour, "solid" if name in filled else styles[name], line_width)
    ax.set(xlim=(-0.5, image_2d.shape[1] - 0.5), ylim=(image_2d.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title)
    return colours


def case_legend(labels: Mapping[int, str], names: Sequence[str] = ()) -> list[Line2D]:
    """Legend entries that go with :func:`draw_case`.

    Args:
        labels: value to structure name; 0 is left out.
        names: kinds of masks drawn, as the keys of ``masks``.

    Returns:
        one coloured entry a structure, then one grey entry in its line style a mask name.
    """
    handles = [
        Line2D([], [], color=structure_colour(value), linewidth=3.0, label=labels[value])
        for value in sorted(labels)
        if value != 0
    ]
    styles = _line_styles(list(names))
    handles += [Line2D([], [], color="0.25", linewidth=1.2, linestyle=styles[name], label=name) for name in names]
    return handles
