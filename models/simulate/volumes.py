"""CT files -> one volume of Hounsfield units: NIfTI, or a folder of DICOM slices, turned so that its slices look like a
radiograph.

    for source in volumes.find("chests"):
        scan = volumes.read(source)

An organ mask beside a NIfTI file (see `find`) is read with it. Every refusal is one line that names the file or the
folder.
"""

import csv
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel import affines, orientations

from ..runtime.files import UserError

AXES = ("P", "I", "L")  # the volume's axes grow towards the back, the feet, the patient's left
MAX_VOXELS = 2**28  # a scan of 512 x 512 x 1024; a header that claims more is damaged, hostile or no chest
MIN_SPACING = 0.05  # mm; no scanner is finer
MAX_SPACING = 6.0  # mm; thicker slices show no ribs
MAX_OBLIQUE = 0.1  # radians by which axes may be off the body's
# cosine of the angle between the slices' normal and the way from slice to slice; below it the gantry was tilted
UPRIGHT = 0.995
MAX_TILT = 0.5  # degrees of the gantry as the header states it
DISTANCE_ERROR = 0.01  # mm, rounding of the slices' positions in the header
NIFTI = (".nii", ".nii.gz")
LARGEST_LABEL = 255  # of an organ; 8 bits hold it
STRUCTURES = "structures.csv"  # numbers and names of an organ mask's structures, columns id and structure
SHOULDERS = "shoulder"  # in the name of a file or a folder of slices: a CT of neck and shoulders
UNEVEN = 0.02  # of the slice distance, within which DICOM slices count as evenly spaced
Spacing = tuple[float, float, float]
SCAN = "1.2.840.10008.5.1.4.1.1.2"  # SOP class of CT images (PS3.6); enhanced ones continue it


@dataclass(frozen=True)
class Source:
    """Where a CT lies. path: a NIfTI file or a folder of DICOM slices; mask, structures: of its organs, or None."""

    path: Path
    mask: Path | None = None
    structures: Path | None = None

    @property
    def shows_shoulders(self) -> bool:
        """Whether this is a CT of neck and shoulders, by its name, and none of a chest."""
        return SHOULDERS in self.path.name.lower()

    def files(self) -> list[Path]:
        """Every file that is read, in a fixed order."""
        scan = _slices(self.path) if self.path.is_dir() else [self.path]
        return scan + [path for path in (self.mask, self.structures) if path is not None]

    def fingerprint(self) -> str:
        """Of the content of all files, whatever their place."""
        digest = hashlib.sha256()
        for path in self.files():
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        # 64 bits: it tells the CTs of a folder apart, and guards against no forger.
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Scan:
    """hounsfield: int16 (D, H, W), axes as AXES; spacing: mm along them; labels: uint8 (D, H, W) or None; names:
    {label: structure}."""

    hounsfield: np.ndarray
    spacing: Spacing
    labels: np.ndarray | None
    names: dict[int, str]


def find(folder) -> list[Source]:
    """The CTs in a folder and the folders below it, by name; or the folder itself, or the file.

    A NIfTI file is a CT; not so mask.nii.gz and <name>_mask.nii.gz, which hold organ numbers of the CT beside them,
    <name>.nii.gz or the only other one, as structures.csv in the same folder names them. A folder that holds DICOM
    slices is one CT.
    """
    folder = Path(folder)
    if folder.is_file():
        return [Source(folder, *_organs(folder))]
    if not folder.is_dir():
        raise UserError(f"no folder of chest CTs {folder}")
    found = []
    for place in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]:
        # Hidden folders hold what programs leave, such as a file browser's copies.
        if any(part.startswith(".") for part in place.relative_to(folder).parts):
            continue
        found += [
            Source(path, *_organs(path)) for path in sorted(place.iterdir()) if _is_nifti(path) and not _is_mask(path)
        ]
        if _slices(place):
            found.append(Source(place))
    if not found:
        raise UserError(f"no chest CT in {folder} (looked for .nii, .nii.gz and folders of DICOM slices)")
    return found


def read(source: Source) -> Scan:
    """The CT at `source`. Raises UserError, which names it, for what is damaged, too large, no CT, incomplete or
    tilted."""
    try:
        with warnings.catch_warnings():
            # Real headers are full of odd values that the readers warn about; what matters is checked below.
            warnings.simplefilter("ignore")
            values, spacing = _read_dicom(source.path) if source.path.is_dir() else _read_nifti(source.path)

            # Organ numbers are optional: without them bone is found from grey values (ct_bone.guessed_bone).
            labels = None
            names = {}
            if source.mask is not None:
                labels, names = _read_labels(source, values.shape, spacing)
        _refuse_strange(values, spacing)
    except UserError:
        raise
    except Exception as error:  # readers raise anything on a damaged file
        raise UserError(f"cannot read {source.path}: {' '.join(str(error).split()) or type(error).__name__}") from None
    return Scan(values, spacing, labels, names)


# --- NIfTI ------------------------------------------------------------------------------------------------------------


def _read_nifti(path: Path) -> tuple[np.ndarray, Spacing]:
    """int16 (D, H, W) and mm, from any orientation whose axes are nearly the body's."""
    picture: Any = nibabel.load(path)  # of a class of nibabel's that follows from the content
    # Some converters leave a time axis of length 1.
    if len(picture.shape) == 4 and picture.shape[3] == 1:
        picture = picture.slicer[..., 0]
    if len(picture.shape) != 3:
        raise ValueError(f"it has {len(picture.shape)} dimensions; one volume is expected")
    # By the header's claim, before the pixels are unpacked: a small file can claim gigabytes.
    _refuse_size(picture.shape)

    # Axes are only exchanged and reversed, never interpolated, so they have to be the body's already.
    oblique = affines.obliquity(picture.affine).max()
    if oblique > MAX_OBLIQUE:
        raise ValueError(
            f"its axes are {np.degrees(oblique):.0f} degrees off the body's (a tilted gantry?); resample it"
        )
    values, spacing = _turned(np.asanyarray(picture.dataobj), picture.affine)
    return _as_int16(values), spacing


def _turned(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, Spacing]:
    """A volume whose voxels lie in the body as NIfTI's affine says, turned so that its axes are AXES; and mm along
    them."""
    # turn[i]: which axis of the result input axis i becomes, and whether it is reversed.
    turn = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt(AXES))
    depth, height, width = affines.voxel_sizes(affine)[np.argsort(turn[:, 0])]
    return orientations.apply_orientation(values, turn), (float(depth), float(height), float(width))


def _read_labels(source: Source, shape: tuple[int, ...], spacing: Spacing) -> tuple[np.ndarray, dict[int, str]]:
    """uint8 (D, H, W), the organ numbers of a CT's voxels, and what they mean."""
    if source.mask is None or source.structures is None:
        raise ValueError("it has no organ mask")
    labels, mask_spacing = _read_nifti(source.mask)
    # Voxel by voxel, so both have to lie on the same grid; headers round the spacing.
    if labels.shape != shape or not np.allclose(spacing, mask_spacing, rtol=1e-2):
        raise ValueError(f"its organ mask {source.mask.name} has {labels.shape} voxels, it has {shape}")
    with open(source.structures, encoding="utf-8-sig", newline="") as file:
        names = {int(row["id"]): row["structure"] for row in csv.DictReader(file)}
    # Wrapped into 8 bits, number 257 would become organ 1.
    if labels.min() < 0 or labels.max() > LARGEST_LABEL:
        raise ValueError(
            f"its organ mask {source.mask.name} has numbers from {labels.min()} to {labels.max()}; "
            f"0 to {LARGEST_LABEL} are read"
        )
    return labels.astype(np.uint8), names


def _organs(path: Path) -> tuple[Path | None, Path | None]:
    """(mask, structures) beside a NIfTI file, or (None, None)."""
    structures = path.parent / STRUCTURES
    if not structures.is_file():
        return None, None
    # A plain mask.nii.gz names no CT, so it is only taken where there is one CT that it can belong to.
    stems = [f"{_name(path)}_mask"]
    scans = [other for other in path.parent.iterdir() if _is_nifti(other) and not _is_mask(other)]
    if len(scans) == 1:
        stems.append("mask")
    for stem in stems:
        for suffix in NIFTI:
            mask = path.parent / (stem + suffix)
            if mask.is_file():
                return mask, structures
    return None, None


def _is_nifti(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(NIFTI) and not path.name.startswith(".")


def _is_mask(path: Path) -> bool:
    return _name(path) == "mask" or _name(path).endswith("_mask")


def _name(path: Path) -> str:
    """The file name in small letters without NIfTI's endings."""
    return path.name.lower().removesuffix(".gz").removesuffix(".nii")


# --- DICOM ------------------------------------------------------------------------------------------------------------


def _slices(folder: Path) -> list[Path]:
    """DICOM files directly in a folder, known by their magic number."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.name != "DICOMDIR":
            with open(path, "rb") as file:
                # PS3.10: a preamble of 128 bytes, then DICM. The file's ending tells nothing; most slices have none.
                if file.read(132)[128:] == b"DICM":
                    found.append(path)
    return found


def _read_dicom(folder: Path) -> tuple[np.ndarray, Spacing]:
    """int16 (D, H, W) and mm of the series in a folder."""
    import pydicom

    paths = _slices(folder)
    # Headers first: a folder of two series is refused before gigabytes of pixels are read.
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    _refuse_mixture(paths, headers)

    # From voxel to voxel in mm: down the rows, across the columns (PS3.3 C.7.6.2.1.1), and from slice to slice
    first = headers[0]
    row_spacing, column_spacing = map(float, first.PixelSpacing)
    across_direction, down_direction = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    down = down_direction * row_spacing
    across = across_direction * column_spacing
    normal = np.cross(across, down) / np.linalg.norm(np.cross(across, down))
    places = np.array([header.ImagePositionPatient for header in headers], float)

    # A tilted gantry shifts each slice against the one before: the way from slice to slice leaves the normal.
    step, order = _slice_step(places, normal)
    if (step @ normal) / np.linalg.norm(step) < UPRIGHT or abs(float(first.get("GantryDetectorTilt") or 0)) > MAX_TILT:
        raise ValueError("its gantry was tilted; resample it to upright slices")

    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ np.column_stack(
        [down, across, step]
    )  # DICOM's x and y are the opposite of NIfTI's
    if affines.obliquity(affine).max() > MAX_OBLIQUE:
        raise ValueError("its slices are oblique; resample it")
    values = np.stack([_slice_values(paths[index]) for index in order], -1)  # (rows, columns, slices)
    return _turned(values, affine)


def _refuse_mixture(paths: list[Path], headers: list) -> None:
    """What is not the slices of one CT, by the headers alone, before any pixel is read."""
    strange = [path for path, header in zip(paths, headers) if not str(header.get("SOPClassUID")).startswith(SCAN)]
    if strange:
        raise ValueError(f"{strange[0].name} is no CT slice")
    if len({header.SeriesInstanceUID for header in headers}) > 1:
        raise ValueError("it holds slices of several series; give each a folder of its own")
    first = headers[0]
    _refuse_size((len(paths), int(first.Rows), int(first.Columns)))
    layouts = {
        (header.Rows, header.Columns, *header.PixelSpacing, *header.ImageOrientationPatient) for header in headers
    }
    if len(layouts) > 1:
        raise ValueError("its slices differ in size, spacing or orientation")


def _slice_step(places: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(from slice to slice in mm (3,), order of the slices) of their positions (n, 3)."""
    # The order of positions, not of file names or instance numbers, which scanners count either way.
    along = places @ normal
    order = np.argsort(along)
    gaps = np.diff(along[order])
    if len(gaps) < 2:
        raise ValueError(f"it holds {len(places)} slices; a chest has more")
    # The median: one missing slice doubles one gap and must not shift what is usual.
    usual = np.median(gaps)
    if usual <= 0 or gaps.min() < (1 - UNEVEN) * usual - DISTANCE_ERROR:
        raise ValueError("it holds two slices of the same place, or slices at uneven distances")
    if gaps.max() > (1 + UNEVEN) * usual + DISTANCE_ERROR:
        raise ValueError(f"slices are missing: {gaps.max():.2f} mm from one to the next, {usual:.2f} mm elsewhere")
    # From the first to the last: the header's rounding averages out over all gaps.
    return (places[order[-1]] - places[order[0]]) / len(gaps), order


def _slice_values(path: Path) -> np.ndarray:
    """int16 (rows, columns) of Hounsfield units."""
    import pydicom
    from pydicom.pixels.processing import apply_rescale

    dataset = pydicom.dcmread(path)
    deflated = dataset.file_meta.TransferSyntaxUID.name == "Deflated Explicit VR Little Endian"
    if deflated or int(dataset.get("NumberOfFrames") or 1) != 1:
        raise ValueError(f"{path.name} is deflated or holds several frames; save it as plain slices")
    return _as_int16(apply_rescale(dataset.pixel_array, dataset))


# --- Refusals ---------------------------------------------------------------------------------------------------------


def _refuse_size(shape: tuple[int, ...]) -> None:
    """More voxels than a chest CT has, or none, as the header claims."""
    # As Python's whole numbers: a hostile header would overflow those of NumPy.
    voxels = int(np.prod([int(side) for side in shape], dtype=object))
    if not 0 < voxels <= MAX_VOXELS:
        raise ValueError(f"it claims {voxels} voxels; at most {MAX_VOXELS} are read")


def _refuse_strange(values: np.ndarray, spacing: Spacing) -> None:
    """What holds no Hounsfield units of a body, or is too coarse."""
    if max(spacing) > MAX_SPACING or min(spacing) <= MIN_SPACING:
        sides = " x ".join(f"{length:.2f}" for length in spacing)
        raise ValueError(f"its voxels measure {sides} mm; {MIN_SPACING:g} to {MAX_SPACING:g} are expected")
    # A chest has air (below -300 HU) and soft tissue (above -100); a part of the voxels shows both.
    low, high = np.percentile(values[::4, ::2, ::4], (1, 99.5))
    if not (low < -300 and -100 < high < 4000):
        raise ValueError(f"its values ({low:.0f} to {high:.0f}) are no Hounsfield units of a chest")


def _as_int16(values: np.ndarray) -> np.ndarray:
    """Rounded and clipped: scanners fill what they did not see with anything."""
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    return np.rint(np.clip(values, -1024, 8000)).astype(np.int16)
