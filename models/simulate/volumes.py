"""CT files -> one volume of Hounsfield units: NIfTI, or a folder of DICOM slices, turned so that its slices look like a radiograph.

    for source in volumes.find("chests"):
        scan = volumes.read(source)

An organ mask beside a NIfTI file (see `find`) is read with it. Every refusal is one line that names the file or the folder.
"""
import csv
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from ..runtime.files import UserError

AXES = ("P", "I", "L")          # the volume's axes grow towards the back, the feet, the patient's left
MAX_VOXELS = 2 ** 28            # a scan of 512 x 512 x 1024; a header that claims more is damaged, hostile or no chest
MAX_SPACING = 6.0               # mm; thicker slices show no ribs
NIFTI = (".nii", ".nii.gz")
STRUCTURES = "structures.csv"   # numbers and names of an organ mask's structures, columns id and structure
UNEVEN = 0.02                   # of the slice distance, within which DICOM slices count as evenly spaced
SCAN = "1.2.840.10008.5.1.4.1.1.2"  # SOP class of CT images (PS3.6); enhanced ones continue it


@dataclass(frozen=True)
class Source:
    """Where a CT lies. path: a NIfTI file or a folder of DICOM slices; mask, structures: of its organs, or None."""
    path: Path
    mask: Path | None = None
    structures: Path | None = None

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
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Scan:
    """hounsfield: int16 (D, H, W), axes as AXES; spacing: mm along them; labels: uint8 (D, H, W) or None; names: {label: structure}."""
    hounsfield: np.ndarray
    spacing: tuple[float, float, float]
    labels: np.ndarray | None
    names: dict[int, str]


def find(folder) -> list[Source]:
    """The CTs in a folder and the folders below it, by name; or the folder itself, or the file.

    A NIfTI file is a CT; not so mask.nii.gz and <name>_mask.nii.gz, which hold organ numbers of the CT beside them, <name>.nii.gz or
    the only other one, as structures.csv in the same folder names them. A folder that holds DICOM slices is one CT.
    """
    folder = Path(folder)
    if folder.is_file():
        return [Source(folder, *_organs(folder))]
    if not folder.is_dir():
        raise UserError(f"no folder of chest CTs {folder}")
    found = []
    for place in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]:
        if any(part.startswith(".") for part in place.relative_to(folder).parts):
            continue
        found += [Source(path, *_organs(path)) for path in sorted(place.iterdir()) if _is_nifti(path) and not _is_mask(path)]
        if _slices(place):
            found.append(Source(place))
    if not found:
        raise UserError(f"no chest CT in {folder} (looked for .nii, .nii.gz and folders of DICOM slices)")
    return found


def read(source: Source) -> Scan:
    """The CT at `source`. Raises UserError, which names it, for what is damaged, too large, no CT, incomplete or tilted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values, spacing = (_read_dicom if source.path.is_dir() else _read_nifti)(source.path)
            labels, names = _read_labels(source, values.shape, spacing) if source.mask else (None, {})
        _refuse_strange(values, spacing)
    except UserError:
        raise
    except Exception as error:  # readers raise anything on a damaged file
        raise UserError(f"cannot read {source.path}: {' '.join(str(error).split()) or type(error).__name__}") from None
    return Scan(values, spacing, labels, names)


# --- NIfTI -----------------------------------------------------------------------------------------------------------------------

def _read_nifti(path) -> tuple[np.ndarray, tuple]:
    """int16 (D, H, W) and mm, from any orientation whose axes are nearly the body's."""
    picture = nibabel.load(path)
    shape = picture.shape
    if len(shape) == 4 and shape[3] == 1:
        picture, shape = picture.slicer[..., 0], shape[:3]
    if len(shape) != 3:
        raise ValueError(f"it has {len(shape)} dimensions; one volume is expected")
    _refuse_size(shape)
    oblique = nibabel.affines.obliquity(picture.affine).max()
    if oblique > 0.1:
        raise ValueError(f"its axes are {np.degrees(oblique):.0f} degrees off the body's (a tilted gantry?); resample it")
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(picture.affine), nibabel.orientations.axcodes2ornt(AXES))
    spacing = nibabel.affines.voxel_sizes(picture.affine)[np.argsort(turn[:, 0])]
    values = nibabel.orientations.apply_orientation(np.asanyarray(picture.dataobj), turn)
    return _as_int16(values), tuple(map(float, spacing))


def _read_labels(source, shape, spacing) -> tuple[np.ndarray, dict]:
    labels, mask_spacing = _read_nifti(source.mask)
    if labels.shape != shape or not np.allclose(spacing, mask_spacing, rtol=1e-2):
        raise ValueError(f"its organ mask {source.mask.name} has {labels.shape} voxels, it has {shape}")
    with open(source.structures, encoding="utf-8-sig", newline="") as file:
        names = {int(row["id"]): row["structure"] for row in csv.DictReader(file)}
    return labels.astype(np.uint8), names


def _organs(path) -> tuple[Path | None, Path | None]:
    """(mask, structures) beside a NIfTI file, or (None, None)."""
    structures, name = path.parent / STRUCTURES, _name(path)
    if structures.is_file():
        alone = sum(_is_nifti(other) and not _is_mask(other) for other in path.parent.iterdir()) == 1
        for stem in [f"{name}_mask", *(["mask"] if alone else [])]:
            for suffix in NIFTI:
                if (path.parent / (stem + suffix)).is_file():
                    return path.parent / (stem + suffix), structures
    return None, None


def _is_nifti(path) -> bool:
    return path.is_file() and path.name.lower().endswith(NIFTI) and not path.name.startswith(".")


def _is_mask(path) -> bool:
    return _name(path) == "mask" or _name(path).endswith("_mask")


def _name(path) -> str:
    return path.name.lower().removesuffix(".gz").removesuffix(".nii")


# --- DICOM -----------------------------------------------------------------------------------------------------------------------

def _slices(folder) -> list[Path]:
    """DICOM files directly in a folder, known by their magic number."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.name != "DICOMDIR":
            with open(path, "rb") as file:
                if file.read(132)[128:] == b"DICM":
                    found.append(path)
    return found


def _read_dicom(folder) -> tuple[np.ndarray, tuple]:
    """int16 (D, H, W) and mm of the series in a folder."""
    import pydicom
    paths = _slices(folder)
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    if strange := [path for path, header in zip(paths, headers) if not str(header.get("SOPClassUID")).startswith(SCAN)]:
        raise ValueError(f"{strange[0].name} is no CT slice")
    if len({header.SeriesInstanceUID for header in headers}) > 1:
        raise ValueError("it holds slices of several series; give each a folder of its own")
    first = headers[0]
    _refuse_size((len(paths), int(first.Rows), int(first.Columns)))
    if len({(header.Rows, header.Columns, *header.PixelSpacing, *header.ImageOrientationPatient) for header in headers}) > 1:
        raise ValueError("its slices differ in size, spacing or orientation")
    down, across = (np.array(first.ImageOrientationPatient, float).reshape(2, 3)[::-1] * np.array(first.PixelSpacing, float)[:, None])
    normal = np.cross(across, down) / np.linalg.norm(np.cross(across, down))
    places = np.array([header.ImagePositionPatient for header in headers], float)
    step, order = _step(places, normal)
    if (step @ normal) / np.linalg.norm(step) < 0.995 or abs(float(first.get("GantryDetectorTilt") or 0)) > 0.5:
        raise ValueError("its gantry was tilted; resample it to upright slices")
    values = np.stack([_slice_values(paths[index]) for index in order], -1)  # (rows, columns, slices)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ np.column_stack([down, across, step])  # DICOM's x and y are the opposite of NIfTI's
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(AXES))
    if nibabel.affines.obliquity(affine).max() > 0.1:
        raise ValueError("its slices are oblique; resample it")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(turn[:, 0])]
    return nibabel.orientations.apply_orientation(values, turn), tuple(map(float, spacing))


def _step(places, normal) -> tuple[np.ndarray, np.ndarray]:
    """(from slice to slice in mm (3,), order of the slices) of their positions (n, 3)."""
    along = places @ normal
    order = np.argsort(along)
    gaps = np.diff(along[order])
    if len(gaps) < 2:
        raise ValueError(f"it holds {len(places)} slices; a chest has more")
    usual = np.median(gaps)
    if usual <= 0 or gaps.min() < (1 - UNEVEN) * usual - 0.01:
        raise ValueError("it holds two slices of the same place, or slices at uneven distances")
    if gaps.max() > (1 + UNEVEN) * usual + 0.01:
        raise ValueError(f"slices are missing: {gaps.max():.2f} mm from one to the next, {usual:.2f} mm elsewhere")
    return (places[order[-1]] - places[order[0]]) / len(gaps), order


def _slice_values(path) -> np.ndarray:
    import pydicom
    from pydicom.pixels import apply_rescale
    dataset = pydicom.dcmread(path)
    if dataset.file_meta.TransferSyntaxUID.name == "Deflated Explicit VR Little Endian" or int(dataset.get("NumberOfFrames") or 1) != 1:
        raise ValueError(f"{path.name} is deflated or holds several frames; save it as plain slices")
    return _as_int16(apply_rescale(dataset.pixel_array, dataset))


# --- Refusals --------------------------------------------------------------------------------------------------------------------

def _refuse_size(shape) -> None:
    voxels = int(np.prod([int(side) for side in shape], dtype=object))
    if not 0 < voxels <= MAX_VOXELS:
        raise ValueError(f"it claims {voxels} voxels; at most {MAX_VOXELS} are read")


def _refuse_strange(values, spacing) -> None:
    """What holds no Hounsfield units of a body, or is too coarse."""
    if max(spacing) > MAX_SPACING or min(spacing) <= 0.05:
        raise ValueError(f"its voxels measure {' x '.join(f'{length:.2f}' for length in spacing)} mm; 0.05 to {MAX_SPACING:g} are expected")
    low, high = np.percentile(values[::4, ::2, ::4], (1, 99.5))
    if not (low < -300 and -100 < high < 4000):
        raise ValueError(f"its values ({low:.0f} to {high:.0f}) are no Hounsfield units of a chest")


def _as_int16(values) -> np.ndarray:
    """Rounded and clipped: scanners fill what they did not see with anything."""
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    return np.rint(np.clip(values, -1024, 8000)).astype(np.int16)
