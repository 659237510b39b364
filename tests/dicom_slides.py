"""Small valid DICOM whole slides (VL Whole Slide Microscopy, TILED_FULL, JPEG), made by pydicom."""

import io

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEGBaseline8Bit,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

ROOT = "1.2.826.0.1.3680043.10.1337."  # of nobody: pydicom's root for examples
TILE = 256
#: Columns run along -y and rows along -x of the slide, as scanners lay it under the label.
TURNED = [0, -1, 0, -1, 0, 0]
STRAIGHT = [1, 0, 0, 0, 1, 0]
ORIGIN_MM = (20.0, 40.0)
PATIENT = {"PatientName": "Roe^Rita", "PatientID": "MRN-0815", "PatientBirthDate": "19440606"}


def uid(*parts):
    """The same UID for the same parts."""
    return generate_uid(prefix=ROOT, entropy_srcs=[str(part) for part in parts])


def write_dicom_slide(
    folder, rgb, *, mpp, levels=2, name="level", study="study", orientation=TURNED, **changes
):
    """Write one instance per level, each half of the one before; their paths, level 0 first."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for level in range(levels):
        ds = _instance(rgb, mpp * 2**level, level, study, orientation)
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
        paths.append(folder / f"{name}{level}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
        rgb = np.asarray(Image.fromarray(rgb).reduce(2))
    return paths


def _instance(rgb, mpp, level, study, orientation):
    height, width = rgb.shape[:2]
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = uid(study, "instance", level)
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, uid(study, "instance", level)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(study), uid(study, "series")
    for keyword, value in PATIENT.items():
        setattr(ds, keyword, value)
    ds.PatientSex, ds.StudyDate, ds.StudyTime = "F", "20240102", "030405"
    ds.AccessionNumber, ds.StudyID, ds.ReferringPhysicianName = "ACC-77", "S1", "House^Gregory"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "SM", 1, level + 1
    ds.Manufacturer, ds.ManufacturerModelName = "nobody", "composed"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "1", "1"
    ds.ContentDate = ds.AcquisitionDateTime = "20240102"
    ds.AcquisitionDateTime, ds.ContentTime = "20240102030405", "030405"
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid(study, "frame"), "SLIDE_CORNER"
    ds.ImageType = ["ORIGINAL" if level == 0 else "DERIVED", "PRIMARY", "VOLUME", "NONE"]
    if level:
        ds.ImageType[3] = "RESAMPLED"
    _describe_specimen(ds, study)
    _describe_pixels(ds, rgb, mpp)
    _describe_place(ds, (width, height), mpp, orientation)
    return ds


def _describe_specimen(ds, study):
    ds.ContainerIdentifier = "C1"
    ds.IssuerOfTheContainerIdentifierSequence = []
    ds.ContainerTypeCodeSequence = [_code("433466003", "SCT", "Microscope slide")]
    specimen = Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = "C1-1", uid(study, "specimen")
    specimen.IssuerOfTheSpecimenIdentifierSequence = []
    specimen.SpecimenPreparationSequence = []
    ds.SpecimenDescriptionSequence = [specimen]
    ds.AcquisitionContextSequence = []
    path = Dataset()
    path.OpticalPathIdentifier = "1"
    path.IlluminationTypeCodeSequence = [_code("111744", "DCM", "Brightfield illumination")]
    path.IlluminationColorCodeSequence = [_code("11744", "DCM", "Full Spectrum")]
    path.IlluminationColorCodeSequence = [_code("414298005", "SCT", "Full Spectrum")]
    path.ICCProfile = _srgb()
    path.ColorSpace = "SRGB"
    ds.OpticalPathSequence = [path]
    ds.NumberOfOpticalPaths = 1


def _srgb():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile + b"\0" * (len(profile) % 2)


def _describe_pixels(ds, rgb, mpp):
    height, width = rgb.shape[:2]
    across, down = -(-width // TILE), -(-height // TILE)
    padded = np.pad(
        rgb, ((0, down * TILE - height), (0, across * TILE - width), (0, 0)), constant_values=255
    )
    frames = []
    for y in range(0, down * TILE, TILE):
        for x in range(0, across * TILE, TILE):
            stream = io.BytesIO()
            tile = Image.fromarray(np.ascontiguousarray(padded[y : y + TILE, x : x + TILE]))
            tile.save(stream, "JPEG", quality=92, subsampling=0)
            data = stream.getvalue()
            frames.append(data + b"\0" * (len(data) % 2))
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].is_undefined_length = True
    ds.Rows = ds.Columns = TILE
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 3, "YBR_FULL_422"
    ds.PlanarConfiguration, ds.PixelRepresentation = 0, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.NumberOfFrames = len(frames)
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "01"
    ds.LossyImageCompressionRatio, ds.LossyImageCompressionMethod = "10", "ISO_10918_1"
    ds.VolumetricProperties, ds.SpecimenLabelInImage = "VOLUME", "NO"
    ds.FocusMethod, ds.ExtendedDepthOfField = "AUTO", "NO"
    ds.PresentationLUTShape, ds.RescaleIntercept, ds.RescaleSlope = "IDENTITY", "0", "1"
    del ds.PresentationLUTShape, ds.RescaleIntercept, ds.RescaleSlope
    ds.AcquisitionDuration = 1.0


def _describe_place(ds, size, mpp, orientation):
    ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixRows = size
    ds.TotalPixelMatrixFocalPlanes = 1
    ds.ImagedVolumeWidth, ds.ImagedVolumeHeight = (side * mpp / 1000 for side in size)
    ds.ImagedVolumeDepth = 0.001
    ds.ImageOrientationSlide = orientation
    origin = Dataset()
    # the center of the first pixel, whose corner is the same point of the slide at every level
    right, lower = np.array(orientation[:3]), np.array(orientation[3:])
    center = np.array([*ORIGIN_MM, 0]) + (right + lower) * mpp / 2000
    origin.XOffsetInSlideCoordinateSystem = float(center[0])
    origin.YOffsetInSlideCoordinateSystem = float(center[1])
    ds.TotalPixelMatrixOriginSequence = [origin]
    ds.DimensionOrganizationType = "TILED_FULL"
    organization = Dataset()
    organization.DimensionOrganizationUID = uid("dimensions")
    ds.DimensionOrganizationSequence = [organization]
    shared, measures, kind = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    measures.SliceThickness = measures.SpacingBetweenSlices = 0.001
    del measures.SpacingBetweenSlices
    kind.FrameType = ds.ImageType
    optical = Dataset()
    optical.OpticalPathIdentifier = "1"
    shared.PixelMeasuresSequence = [measures]
    shared.WholeSlideMicroscopyImageFrameTypeSequence = [kind]
    shared.OpticalPathIdentificationSequence = [optical]
    ds.SharedFunctionalGroupsSequence = [shared]


def _code(value, scheme, meaning):
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code
