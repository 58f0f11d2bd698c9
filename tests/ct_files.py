"""What the tests of CTs share: a volume written as a NIfTI file and as DICOM slices."""

import nibabel
import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from models.simulate import volumes

SPACING = (3.0, 4.0, 3.0)  # mm along front-back, head-foot, right-left


def write_nifti(path, volume, spacing=SPACING, axes=volumes.AXES):
    """The volume as a file whose axes run as `axes` say."""
    affine = np.eye(4)
    affine[:3, :3] = (
        np.array([(0, 0, -1), (-1, 0, 0), (0, -1, 0)]) * spacing
    )  # NIfTI: x to the right, y to the front, z to the head
    turn = nibabel.io_orientation(affine)
    picture = nibabel.Nifti1Image(volume, affine)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(
        picture.as_reoriented(nibabel.orientations.ornt_transform(turn, nibabel.orientations.axcodes2ornt(axes))), path
    )
    return path


def write_series(folder, volume, spacing=SPACING, plane=1, changes=None):
    """The volume as DICOM slices across its axis `plane`, in shuffled files. changes: {slice: function of the
    dataset}."""
    to_body = (
        np.array([(0, 1, 0), (0, 0, -1), (1, 0, 0)], float) * np.array(spacing)[:, None]
    )  # DICOM: x left, y back, z head
    rows, columns = [axis for axis in range(3) if axis != plane]
    folder.mkdir(parents=True, exist_ok=True)
    series, frame = generate_uid(), generate_uid()
    for index in range(volume.shape[plane]):
        dataset = pydicom.Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID, dataset.Modality = series, frame, "CT"
        pixels = volume.take(index, plane)
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.PixelSpacing = [spacing[rows], spacing[columns]]
        dataset.ImageOrientationPatient = [*(to_body[columns] / spacing[columns]), *(to_body[rows] / spacing[rows])]
        dataset.ImagePositionPatient = list(index * to_body[plane])
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1100
        dataset.PixelData = (pixels.astype(np.int32) + 1100).astype("<u2").tobytes()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if changes and index in changes and changes[index](dataset) is False:
            continue
        dataset.save_as(folder / f"{(index * 37) % 101:03d}.dcm", enforce_file_format=True)
    return folder
