"""MetaImage volumes: a text header (``.mhd``) with its voxels in a file beside it, or both in one file (``.mha``)."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from ..contract.output import fault
from ..loading.dicom import LPS_TO_RAS
from .base import Volume

# NumPy type, without byte order, of each element type
_TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
_LONGEST_HEADER = 1 << 16  # bytes


def read_mhd(path: Path) -> Volume:
    """Read a MetaImage volume of 3 axes; its positions (left-posterior-superior) become NIfTI's.

    Row i of ``TransformMatrix`` is the direction in space of axis i, ``Offset`` the centre of the first voxel.

    Args:
        path: ``.mhd`` file, whose voxels lie beside it, or ``.mha`` file.

    Returns:
        the stored voxels (X, Y, Z) and their place.

    Raises:
        DataError: when a file is missing or damaged, or of a form that is not supported.
    """
    keys, header_size = _read_header(path)
    try:
        shape = tuple(map(int, keys["DimSize"].split()))
        # an axis without a spacing counts as 1 mm in the format
        spacing = _numbers(keys, ("ElementSpacing", "ElementSize"), [1.0] * len(shape))
        origin = _numbers(keys, ("Offset", "Position", "Origin"), [0.0] * len(shape))
        rows = _numbers(keys, ("TransformMatrix", "Rotation", "Orientation"), np.eye(len(shape)).ravel().tolist())
        name, kind = keys["ElementDataFile"], keys["ElementType"]
        skipped = int(keys.get("HeaderSize", "0"))
    except (KeyError, ValueError) as error:
        raise fault(path, f"its header is incomplete ({error})", "download the case again") from error
    if len(shape) != 3 or min(shape) < 1 or (len(spacing), len(origin), len(rows)) != (3, 3, 9):
        raise fault(path, f"has DimSize {' '.join(map(str, shape))}", "give a volume of 3 axes")
    if kind not in _TYPES or keys.get("ElementNumberOfChannels", "1") != "1":
        raise fault(path, f"stores {kind} of {keys.get('ElementNumberOfChannels', '1')} channels", "export it again")
    if skipped < 0:  # -1: the voxels are the end of the file
        raise fault(path, f"has HeaderSize {skipped}", "export it again with a raw file of voxels alone")
    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(rows, (3, 3)) * np.reshape(spacing, (3, 1))).T
    affine[:3, 3] = origin
    if not np.isfinite(affine).all() or min(spacing) <= 0 or abs(np.linalg.det(affine)) < 1e-9:
        raise fault(path, "its spacing and directions span no volume", "correct the header")
    big = keys.get("BinaryDataByteOrderMSB", keys.get("ElementByteOrderMSB", "False")).lower() == "true"
    dtype = np.dtype((">" if big else "<") + _TYPES[kind])
    data = _read_data(path, name, header_size, keys)[skipped:]
    if len(data) != dtype.itemsize * int(np.prod(shape)):
        what = f"has {len(data)} bytes of voxels, its header asks for {dtype.itemsize * int(np.prod(shape))}"
        raise fault(path, what, "download the case again")
    voxels = np.frombuffer(data, dtype).reshape(shape, order="F")  # the first axis runs fastest
    return Volume(voxels.astype(dtype.newbyteorder("=")), LPS_TO_RAS @ affine, path)


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """Keys of the header, and its length in bytes; ``ElementDataFile`` ends it."""
    keys: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            while "ElementDataFile" not in keys and file.tell() < _LONGEST_HEADER and (line := file.readline(4096)):
                key, _, value = line.decode("latin-1").partition("=")
                keys[key.strip()] = value.strip()
            size = file.tell()
    except OSError as error:
        raise fault(path, f"cannot be read ({error})", "download the case again") from error
    if "ElementDataFile" not in keys:
        raise fault(path, "is no MetaImage header: it names no ElementDataFile", "download the case again")
    return keys, size


def _numbers(keys: dict[str, str], names: tuple[str, ...], default: list[float]) -> list[float]:
    """Numbers of the first of several spellings of a key that is there."""
    given = next((keys[name] for name in names if name in keys), None)
    return default if given is None else [float(number) for number in given.split()]


def _read_data(path: Path, name: str, header_size: int, keys: dict[str, str]) -> bytes:
    """Bytes of the voxels, decompressed."""
    local = name.upper() == "LOCAL"
    file = path if local else path.parent / name
    if not local and (Path(name).name != name or name.upper() == "LIST" or "%" in name):
        raise fault(path, f"names its voxels as {name!r}", "store them in one file beside the header")
    if not file.is_file():
        raise fault(file, f"is missing, {path.name} names it", "download the case again")
    data = file.read_bytes()[header_size if local else 0 :]
    if keys.get("CompressedData", "False").lower() == "true":
        try:
            return zlib.decompress(data)
        except zlib.error as error:
            raise fault(file, f"cannot be decompressed ({error})", "download the case again") from error
    return data
