"""Reading one NIfTI file with all that can be wrong with it: header first, then voxel values."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from .faults import DataError, Fault

ENDINGS = (".nii", ".nii.gz")
# beyond it the squares of an image's 10^8 voxels add up to more than float32 holds (3e38)
LARGEST_INTENSITY = 1e15
# voxels and images of patients, animals and tissue in mm; what lies outside is in metres or micrometres
LARGEST_VOXEL = 100.0
EXTENT = (1.0, 10_000.0)
FLOAT32_STEP = float(np.finfo(np.float32).eps)
FEWEST_VOXELS = 4  # along an axis, after resampling
PART = 1 << 22  # voxels that are hashed at once
UNITS = {1: "metres", 3: "micrometres"}  # of NIfTI's xyzt_units; 2 is mm, 0 says nothing
_UNREADABLE = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
)

#: what to do about a fault whose fix changes a file that has a second name; converters link images to the download
LINKED = "it is a hard link of the original: save under a new name and rename over it"

#: reports a fault of a file: what is wrong, and the fix
Report = Callable[[str, str], None]


@dataclass(frozen=True)
class Header:
    """Geometry of one file.

    Attributes:
        shape: spatial shape in voxels, 2 or 3 numbers.
        channels: length of the fourth axis, 1 without one.
        affine: (4, 4), voxel to mm.
        image: the opened file, its voxels not read yet; None of voxels that are in no file.
    """

    shape: tuple[int, ...]
    channels: int
    affine: np.ndarray
    image: Any

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm along each spatial axis."""
        return tuple(float(size) for size in np.linalg.norm(self.affine[:3, : len(self.shape)], axis=0))

    @property
    def path(self) -> str | None:
        """Of the file."""
        return None if self.image is None else self.image.get_filename()


def when_rewritten(path: str | None, report: Report) -> Report:
    """For faults whose fix is to change a file: the report, which also says how not to change the original with it."""
    if path is None or os.stat(path).st_nlink < 2:
        return report
    return lambda what, fix: report(what, f"{fix}; {LINKED}")


def read_header(path: str, report: Report) -> Header | None:
    """Open a file and check its geometry; voxels are not read.

    Args:
        path: the file.
        report: called with each fault.

    Returns:
        the geometry, None if the file cannot be used.
    """
    if not Path(path).is_file():
        report("there is no such file", "correct the path in the JSON, or remove the record")
        return None
    if not path.endswith(ENDINGS):
        report("is not a NIfTI file (.nii or .nii.gz)", "convert it, see `python -m common.data convert`")
        return None
    try:
        image: Any = nib.load(path)
        with nib.openers.ImageOpener(path) as stream:
            # nibabel mends a spacing of zero or less when it loads; the raw header shows what stands in the file
            raw = type(image.header).from_fileobj(stream, check=False)
    except _UNREADABLE as error:
        report(f"cannot be read as NIfTI ({_short(error)})", "export or download it again")
        return None
    report = when_rewritten(path, report)
    shape = tuple(int(size) for size in image.shape)
    affine = np.asarray(image.affine, dtype=np.float64)
    if not 2 <= len(shape) <= 4 or 0 in shape:
        report(f"has shape {shape}, which is neither 2D, 3D nor 3D with channels", "store one 2D or 3D image a file")
        return None
    spatial = shape[:3]
    steps = np.asarray(raw["pixdim"][1 : len(spatial) + 1], dtype=np.float64)
    if not np.all(np.isfinite(steps)) or np.any(steps <= 0):
        report(f"has voxel spacing {_numbers(steps)} mm, it must be above zero", "correct pixdim in the file's header")
    elif not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        report("has an affine that maps voxels to no volume", "correct qform and sform in the file's header")
        return None
    return Header(spatial, shape[3] if len(shape) == 4 else 1, affine, image)


def check_size(header: Header, report: Report, note: Report) -> bool:
    """Report a voxel size or an extent that no image in mm has.

    Sizes are read as mm, whatever xyzt_units says: it is often wrong.

    Args:
        header: of the image.
        report: called with each fault.
        note: called where the sizes are those of an image in mm, but xyzt_units or pixdim say otherwise.

    Returns:
        whether the sizes are those of an image in mm.
    """
    report, note = (when_rewritten(header.path, one) for one in (report, note))
    spacing = np.array(header.spacing)
    extent = spacing * header.shape
    sizes = f"voxels of {_numbers(spacing)} mm and so an extent of {_numbers(extent)} mm"
    unit = UNITS.get(int(header.image.header["xyzt_units"]) & 7)
    told = "" if unit is None else f", and xyzt_units says {unit}"
    # a spacing of 1 everywhere means that none is known
    too_large = spacing.max() > LARGEST_VOXEL or (extent.max() > EXTENT[1] and bool(np.any(spacing != 1)))
    if too_large or extent.max() < EXTENT[0]:
        likely, factor = ("micrometres", "0.001") if too_large else ("metres", "1000")
        fix = f"if these are {likely}, multiply pixdim, qform and sform by {factor} and set xyzt_units to 2 (mm)"
        report(f"has {sizes}{told}", f"{fix}, else correct pixdim")
        return False
    if unit is not None:
        note(f"has {sizes}{told}: they are taken as mm", "set xyzt_units to 2 (mm)")
    steps = np.asarray(header.image.header["pixdim"][1 : len(spacing) + 1], dtype=np.float64)
    if not np.allclose(steps, spacing, rtol=0.01):
        what = f"has pixdim {_numbers(steps)} mm, but an affine with voxels of {_numbers(spacing)} mm, which counts"
        note(what, "correct the one that is wrong")
    return True


def check_resampled(header: Header, spacing: Sequence[float], report: Report) -> None:
    """Report an image of which resampling would leave next to nothing, or make more than memory holds.

    Args:
        header: of the image.
        spacing: voxel size in mm to resample to, along each axis of the image turned to RAS.
        report: called with each fault.
    """
    axes = nib.orientations.io_orientation(header.affine)[: len(header.shape), 0].astype(int)
    if len(spacing) != len(header.shape) or sorted(axes) != list(range(len(axes))):
        return
    size, target = np.array(header.shape), np.array(spacing, dtype=float)[axes]
    resampled = np.maximum(1, np.rint(size * np.array(header.spacing) / target))
    words = (
        f"has {_times(header.shape)} voxels of {_numbers(np.array(header.spacing))} mm; resampled to a spacing of "
        f"{_numbers(target)} mm it has {_numbers(resampled)}"
    )
    report = when_rewritten(header.path, report)
    needed, memory = float(4 * header.channels * resampled.prod()), physical_memory()
    if np.any((resampled < FEWEST_VOXELS) & (size >= FEWEST_VOXELS)):
        report(words, "correct pixdim in the file's header, or give a finer --spacing")
    elif memory is not None and needed > memory:
        what = f"{words}, which take {needed / 1e9:.0f} GB of this machine's {memory / 1e9:.0f} GB"
        report(what, "correct pixdim in the file's header, or give a coarser --spacing")


def physical_memory() -> int | None:
    """Bytes; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def read_voxels(header: Header, report: Report) -> np.ndarray | None:
    """Read all voxels of a file.

    Args:
        header: from :func:`read_header`.
        report: called with each fault.

    Returns:
        the stored array, in ``header.shape`` if there is one channel (a fourth axis of length 1 is dropped); None if
        it cannot be read or does not hold real numbers.
    """
    try:
        voxels = np.asanyarray(_with_checksum(header.image).dataobj)
    except (*_UNREADABLE, MemoryError) as error:
        report(f"is truncated or damaged: its voxels cannot be read ({_short(error)})", "export or download it again")
        return None
    if voxels.dtype.fields is not None or not np.issubdtype(voxels.dtype, np.number) or np.iscomplexobj(voxels):
        what = f"stores {voxels.dtype} (colour or complex) where plain numbers are expected"
        when_rewritten(header.path, report)(what, "store one number a voxel")
        return None
    return voxels.reshape(header.shape) if header.channels == 1 else voxels


def read_volume(path: str | os.PathLike[str]) -> tuple[np.ndarray, Header]:
    """Voxels, see :func:`read_voxels`, and geometry of a NIfTI file.

    Raises:
        DataError: when it is missing, cannot be read or holds no plain numbers.
    """

    def report(what: str, fix: str) -> None:
        raise DataError([Fault(os.fspath(path), what, fix)])

    header = read_header(os.fspath(path), report)
    voxels = None if header is None else read_voxels(header, report)
    assert header is not None and voxels is not None  # else a fault was raised
    return voxels, header


def _with_checksum(image: Any) -> Any:
    """The image, its voxels decompressed to the end of the file, where gzip keeps their checksum.

    nibabel stops reading before it.

    Raises:
        OSError, EOFError, zlib.error: the checksum is wrong, or the file is cut or damaged otherwise.
    """
    path = image.get_filename()
    if not path.endswith(".gz") or not hasattr(image, "from_bytes"):
        return image
    return type(image).from_bytes(gzip.decompress(Path(path).read_bytes()))


def check_image(voxels: np.ndarray, report: Report) -> None:
    """Report intensities that are NaN, infinite, constant, or too large or too much alike for float32.

    Args:
        voxels: the stored array, channels last if it has four axes.
        report: called with each fault.
    """
    wrong = int(voxels.size - np.count_nonzero(np.isfinite(voxels)))
    if wrong:
        report(f"has {wrong} voxels that are NaN or infinite", "replace them, for example by the background's value")
        return
    for channel, part in enumerate(np.moveaxis(voxels, 3, 0) if voxels.ndim == 4 else voxels[None]):
        place = f" in channel {channel}" if voxels.ndim == 4 else ""
        low, high = float(part.min()), float(part.max())
        if low == high:
            report(f"has the same value {low:g} everywhere{place}", "export the image again, it shows nothing")
        elif max(-low, high) > LARGEST_INTENSITY:
            many = int(np.count_nonzero(np.abs(part) > LARGEST_INTENSITY))
            what = f"has intensities from {low:g} to {high:g}{place} ({many} voxels beyond {LARGEST_INTENSITY:g})"
            report(what, "correct scl_slope and scl_inter in the file's header, or replace these voxels")
        elif not high - low > max(-low, high) * FLOAT32_STEP or high - low < 1 / LARGEST_INTENSITY:
            what = f"has intensities from {low:g} to {high:g}{place}, which float32 does not tell apart once squared"
            report(what, "correct scl_slope and scl_inter in the file's header, or subtract the offset and scale")


def hash_voxels(voxels: np.ndarray, header: Header, digest: hashlib.blake2b) -> None:
    """Add an image's shape and its voxels as float32, to which they are loaded: copies may be stored as other types."""
    digest.update(repr(header.shape).encode())
    flat = voxels.ravel(order="F")  # a view: NIfTI stores the first axis first
    for start in range(0, flat.size, PART):
        with np.errstate(over="ignore", invalid="ignore"):  # faults of check_image
            part = flat[start : start + PART].astype("<f4")
        part += 0  # -0 becomes 0
        digest.update(part.data)


def count_values(voxels: np.ndarray, report: Report) -> dict[int, int] | None:
    """Number of voxels of each value of a label map.

    Args:
        voxels: the stored array.
        report: called with each fault.

    Returns:
        count by value, None if there are values that are not whole numbers.
    """
    if not np.all(np.isfinite(voxels)):
        report("has label values that are NaN or infinite", "store whole numbers")
        return None
    if not np.issubdtype(voxels.dtype, np.integer) and np.any(voxels != np.rint(voxels)):
        example = float(voxels[voxels != np.rint(voxels)].flat[0])
        what = f"has label values that are not whole numbers, such as {example:.4g}"
        report(what, "resample labels with nearest neighbour, and store a label map and no probabilities")
        return None
    low, high = int(voxels.min()), int(voxels.max())
    if low >= 0 and high < 65536:  # counting is many times faster than sorting
        counts = np.bincount(voxels.astype(np.int64).ravel())
        return {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
    values, numbers = np.unique(voxels, return_counts=True)
    return {int(value): int(number) for value, number in zip(values, numbers, strict=True)}


def compare_geometry(header: Header, image: Header, of: str, report: Report) -> None:
    """Report a shape or a position in space that differs from the image's.

    Args:
        header: of the label, or of a further channel.
        image: of the image.
        of: what ``image`` is called in the message.
        report: called with each fault.
    """
    report = when_rewritten(header.path, report)
    if header.shape != image.shape:
        what = f"has shape {_times(header.shape)}, {of} has {_times(image.shape)} (voxels)"
        report(what, "resample it to the image's grid, or correct the pairing in the JSON")
        return
    corner = np.array([*(size - 1 for size in image.shape), *[0] * (3 - len(image.shape)), 1.0])
    ends = np.stack([[0.0, 0.0, 0.0, 1.0], corner])
    apart = float(np.abs((ends @ header.affine.T - ends @ image.affine.T)[:, :3]).max())
    apart = max(apart, float(np.abs(header.affine[:3, :3] - image.affine[:3, :3]).max()))
    # rounding in headers is common, so a tenth of a voxel is let pass
    if apart > 0.1 * min(image.spacing):
        what = f"lies elsewhere in space than {of}: their affines place the same voxel up to {apart:.3g} mm apart"
        report(what, "copy the image's affine if only the header is wrong, else resample it to the image's grid")


def _short(error: BaseException) -> str:
    """First line of an error; nibabel ends some with the name of a file object that has none."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
    return line[:120].removesuffix(" from")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{value:g}" for value in values)
