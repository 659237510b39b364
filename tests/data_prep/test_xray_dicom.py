"""DICOM pixels: one picture, however it is stored, reads as one array; others are refused."""

import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagecodecs import ljpeg_encode
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGExtended12Bit, JPEGLosslessSV1, RLELossless
from xray_files import (
    SECRETS,
    draw,
    in_syntax,
    lookup_table,
    make_dataset,
    make_dicom,
    make_encapsulated,
    make_jpeg,
    read,
    to_bytes,
    with_element,
)

from data_prep.xray import read_xray, read_xray_header
from data_prep.xray_dicom import is_dicom, parse_dicom
from data_prep.xray_dicom_display import apply_window, orient
from esad_med.base.errors import ImageError
from esad_med.base.limits import Limits

LOSSLESS = (
    "explicit",
    "implicit, no preamble",
    "explicit, no meta",
    "big endian",
    "deflated",
    "RLE",
    "JPEG-LS",
    "J2K",
)


def refusal(data, **limits):
    with pytest.raises(ImageError) as caught:
        read(data, **limits)
    message = str(caught.value)
    assert not any(secret in message for secret in SECRETS)
    return message


def linear(values, center, width):
    """PS3.3 C.11.2.1.2.1, its pseudo code with y from 0 to 1."""
    shown = np.empty(values.shape)
    for at, x in np.ndenumerate(values):
        if x <= center - 0.5 - (width - 1) / 2:
            shown[at] = 0
        elif x > center - 0.5 + (width - 1) / 2:
            shown[at] = 1
        else:
            shown[at] = (x - (center - 0.5)) / (width - 1) + 0.5
    return shown


# --- one picture, many files


@pytest.mark.parametrize("bits", range(8, 17))
def test_both_photometric_interpretations_of_a_picture_read_alike(bits):
    pixels = draw(bits=bits)
    two = read(make_dicom(pixels, bits=bits))
    inverted = (2**bits - 1 - pixels.astype(np.int64)).astype(pixels.dtype)
    one = read(make_dicom(inverted, bits=bits, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(two, pixels / (2**bits - 1), atol=1e-6)
    np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_monochrome1_is_turned_over_after_its_window(bits):
    pixels, full = draw(bits=bits), 2**bits
    window = {"WindowCenter": full * 0.4, "WindowWidth": full * 0.5}
    two = read(make_dicom(pixels, bits=bits, **window))
    one = read(make_dicom(pixels, bits=bits, PhotometricInterpretation="MONOCHROME1", **window))
    np.testing.assert_allclose(one, 1 - two, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_signed_pixels_with_an_offset_read_as_unsigned_ones(bits):
    pixels, offset = draw(bits=bits).astype(np.int64), 2 ** (bits - 1)
    signed = (pixels - offset).astype(np.int8 if bits == 8 else np.int16)
    plain = read(make_dicom(pixels.astype(np.uint8 if bits == 8 else np.uint16), bits=bits))
    np.testing.assert_allclose(read(make_dicom(signed, bits=bits)), plain, atol=1e-6)
    window = {"WindowCenter": offset + 7, "WindowWidth": offset}
    rescale = {"RescaleSlope": 1, "RescaleIntercept": offset}
    unsigned = make_dicom(pixels.astype(np.uint16), bits=bits, **window)
    shifted = make_dicom(signed.astype(np.int16), bits=bits, **window, **rescale)
    np.testing.assert_allclose(read(shifted), read(unsigned), atol=1e-6)


@pytest.mark.parametrize("bits", [8, 12])
@given(
    slope=st.floats(0.01, 50),
    intercept=st.floats(-3000, 3000),
    function=st.sampled_from(["LINEAR_EXACT", "SIGMOID"]),
)
def test_a_rescale_is_undone_by_the_window_that_matches_it(bits, slope, intercept, function):
    pixels, full = draw(64, bits=bits), 2**bits
    slope, intercept = float(f"{slope:.6g}"), float(f"{intercept:.6g}")
    window = {"WindowCenter": full / 2, "WindowWidth": full * 0.75, "VOILUTFunction": function}
    matching = {
        "WindowCenter": f"{slope * full / 2 + intercept:.10g}",
        "WindowWidth": f"{slope * full * 0.75:.10g}",
        "RescaleSlope": slope,
        "RescaleIntercept": intercept,
    }
    rescaled = read(make_dicom(pixels, bits=bits, **(window | matching)))
    np.testing.assert_allclose(rescaled, read(make_dicom(pixels, bits=bits, **window)), atol=1e-4)


def test_a_rescale_alone_changes_nothing_and_a_falling_one_turns_the_picture_over():
    for bits in (8, 12):
        pixels = draw(bits=bits)
        plain = read(make_dicom(pixels, bits=bits))
        rising = make_dicom(pixels, bits=bits, RescaleSlope=3, RescaleIntercept=-1000)
        falling = make_dicom(pixels, bits=bits, RescaleSlope=-3, RescaleIntercept=0)
        np.testing.assert_allclose(read(rising), plain, atol=1e-6)
        np.testing.assert_allclose(read(falling), 1 - plain, atol=1e-6)


def test_eight_bits_without_a_window_are_display_values_whatever_the_picture_uses():
    pixels = np.clip(draw(), 60, 180)
    np.testing.assert_allclose(read(make_dicom(pixels)), pixels / 255, atol=1e-7)


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_every_lossless_transfer_syntax_gives_the_same_picture(name, bits):
    pixels = draw(81 if bits == 8 else 80, bits=bits)  # odd: a padded byte, odd rows
    np.testing.assert_array_equal(
        read(in_syntax(pixels, name, bits=bits)), read(make_dicom(pixels, bits=bits))
    )


@pytest.mark.parametrize("name", ["RLE", "J2K", "big endian", "implicit, no preamble"])
def test_signed_pixels_survive_their_transfer_syntax(name):
    pixels = (draw(bits=12).astype(np.int32) - 2048).astype(np.int16)
    np.testing.assert_array_equal(
        read(in_syntax(pixels, name, bits=12)), read(make_dicom(pixels, bits=12))
    )


def test_jpeg_baseline_reads_alike_within_its_loss():
    pixels = draw()
    assert np.abs(read(in_syntax(pixels, "JPEG")) - pixels / 255).mean() < 0.01


def test_bits_above_those_stored_are_no_part_of_the_picture():
    pixels = draw(bits=12)
    overlaid = pixels | (np.arange(96, dtype=np.uint16)[None] % 16 << 12)
    np.testing.assert_array_equal(
        read(make_dicom(overlaid, bits=12)), read(make_dicom(pixels, bits=12))
    )


def test_an_extended_offset_table_leads_to_the_frame_that_was_checked():
    pixels = draw()
    ds = make_dataset(pixels)
    ds.compress(RLELossless)
    honest = to_bytes(ds)
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(
        [frame]
    )
    ds["PixelData"].is_undefined_length = True
    np.testing.assert_array_equal(read(to_bytes(ds)), read(honest))
    big = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 5000
    ds.PixelData = encapsulate([frame, big])
    place = len(frame) + len(frame) % 2 + 8
    ds.ExtendedOffsetTable = struct.pack("<Q", place)
    ds.ExtendedOffsetTableLengths = struct.pack("<Q", len(big))
    assert "RLE data of another size" in refusal(to_bytes(ds))


# --- padding


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("padding", [0, 4095])
def test_padding_is_black_and_does_not_disturb_the_stretch(photometric, padding):
    pixels = np.clip(draw(bits=12), 1000, 3000)
    padded = pixels.copy()
    padded[:, :20] = padding
    changes = {"bits": 12, "PhotometricInterpretation": photometric}
    shown = read(make_dicom(padded, PixelPaddingValue=padding, **changes))
    assert (shown[:, :20] == 0).all()
    whole = read(make_dicom(np.where(pixels == 0, 1000, pixels), **changes))
    np.testing.assert_allclose(shown[:, 20:], whole[:, 20:], atol=1e-6)


def test_a_range_of_padding_and_signed_padding_are_black():
    pixels = np.clip(draw(bits=12), 1000, 3000)
    padded = pixels.copy()
    padded[:5], padded[5:10] = 10, 30
    shown = read(make_dicom(padded, bits=12, PixelPaddingValue=10, PixelPaddingRangeLimit=30))
    assert (shown[:10] == 0).all()
    signed = padded.astype(np.int16)
    signed[:10] = -2000
    ds = make_dataset(signed, PixelPaddingValue=-2000)
    ds["PixelPaddingValue"].VR = "SS"
    right = read(to_bytes(ds))
    assert (right[:10] == 0).all()
    unsigned = make_dataset(signed)
    unsigned.add_new("PixelPaddingValue", "US", 65536 - 2000)  # as some devices write it
    np.testing.assert_array_equal(read(to_bytes(unsigned)), right)


# --- windows and tables


def test_windows_against_numbers_by_hand():
    x = np.array([[-1.0, 0, 1, 2, 3, 4, 5]])
    # LINEAR, center 2.5, width 4: from 2 - 1.5 to 2 + 1.5
    by_hand = [[0, 0, (1 - 2) / 3 + 0.5, 0.5, (3 - 2) / 3 + 0.5, 1, 1]]
    np.testing.assert_allclose(apply_window(x, 2.5, 4), by_hand)
    np.testing.assert_allclose(
        apply_window(x, 2.5, 4, function="LINEAR_EXACT"),
        [[0, 0, 0.125, 0.375, 0.625, 0.875, 1]],
    )
    np.testing.assert_allclose(
        apply_window(x, 2, 4, function="SIGMOID")[0, [2, 3, 4]],
        [1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-1))],
    )
    np.testing.assert_array_equal(apply_window(x, 2.5, 1), [[0, 0, 0, 0, 1, 1, 1]])


@given(
    center=st.floats(-5000, 5000),
    width=st.floats(1, 10000),
    values=st.lists(st.integers(-40000, 70000), min_size=1, max_size=20),
)
def test_a_linear_window_is_that_of_the_standard(center, width, values):
    x = np.array([values], dtype=np.float64)
    np.testing.assert_allclose(apply_window(x, center, width), linear(x, center, width), atol=1e-9)


@given(
    center=st.floats(-1e6, 1e6),
    width=st.floats(1, 1e7),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20),
)
def test_windows_never_fall_and_stay_within_0_and_1(center, width, function, values):
    x = np.sort(np.array([values]))
    shown = apply_window(x, center, width, function=function)
    assert (np.diff(shown) >= 0).all()
    assert shown.min() >= 0
    assert shown.max() <= 1


@pytest.mark.parametrize(
    ("center", "width", "function"),
    [
        (10, 0.5, "LINEAR"),
        (10, 0, "LINEAR_EXACT"),
        (10, -5, "SIGMOID"),
        (float("nan"), 10, "LINEAR"),
        (10, float("inf"), "LINEAR"),
    ],
)
def test_impossible_windows_are_refused(center, width, function):
    with pytest.raises(ImageError, match="no such window can be"):
        apply_window(np.zeros((2, 2)), center, width, function=function)


def test_the_first_of_several_windows_counts_and_half_a_window_is_none():
    pixels = draw(bits=12)
    first = read(make_dicom(pixels, bits=12, WindowCenter=2000, WindowWidth=1000))
    several = make_dicom(pixels, bits=12, WindowCenter=[2000, 9], WindowWidth=[1000, 9])
    np.testing.assert_array_equal(read(several), first)
    half = read(make_dicom(pixels, bits=12, WindowCenter=2000))
    np.testing.assert_array_equal(half, read(make_dicom(pixels, bits=12)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"WindowCenter": 100, "WindowWidth": 0}, "no such window"),
        ({"WindowCenter": 1e6, "WindowWidth": 10}, "same value everywhere"),
        ({"WindowCenter": 5, "WindowWidth": 10, "VOILUTFunction": "WAVE"}, "function WAVE"),
        ({"RescaleSlope": 1e30, "RescaleIntercept": 0}, "no such rescale"),
        ({"RescaleSlope": 0, "RescaleIntercept": 5}, "same value everywhere"),
        ({"NumberOfFrames": 2}, "several frames"),
        ({"PhotometricInterpretation": "RGB"}, "photometric interpretation RGB"),
        ({"PhotometricInterpretation": None}, "photometric interpretation "),
        ({"SamplesPerPixel": 3}, "3 samples per pixel"),
        ({"BitsAllocated": 32}, "32 bits allocated"),
        ({"BitsStored": 17, "HighBit": 16}, "cannot be decoded"),
        ({"Rows": 97}, "cannot be decoded"),
        ({"Rows": 0}, "at least 1x1"),
        ({"Rows": 40000, "Columns": 40000}, "limits.megapixels"),
        ({"Rows": None}, "holds no image"),
    ],
)
def test_headers_that_fit_no_radiograph_are_refused_with_the_reason(changes, said):
    assert said in refusal(make_dicom(draw(bits=12), **({"bits": 12} | changes)))


@pytest.mark.parametrize(
    "name", ["WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "NumberOfFrames"]
)
@pytest.mark.parametrize("text", [b"abc ", b"1,5 ", b"nan ", b"1e999 "])
def test_text_in_a_number_that_matters_is_refused(name, text):
    changes = {"WindowCenter": 8, "WindowWidth": 8, "RescaleSlope": 1, "RescaleIntercept": 0}
    ds = make_dataset(draw(bits=12), bits=12, **{**changes, "NumberOfFrames": 1})
    place = ds[name].tag
    data = to_bytes(ds)
    head = struct.pack("<HH", place.group, place.element)
    at = data.index(head)
    length = struct.unpack("<H", data[at + 6 : at + 8])[0]
    changed = data[: at + 6] + struct.pack("<H", len(text)) + text + data[at + 8 + length :]
    assert f"{name} is not a " in refusal(changed)


def test_text_in_a_number_that_does_not_matter_is_passed_over():
    odd = b"\x18\x00\x50\x11IS\x04\x00abc " + b"\x18\x00\x64\x11DS\x04\x00x\\y "
    data = with_element(make_dicom(draw()), odd)  # exposure time, detector spacing
    np.testing.assert_array_equal(read(data), read(make_dicom(draw())))
    assert parse_dicom(data, limits=Limits()).header.spacing_mm is None


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("vr", ["US", "OW"])
def test_a_voi_lut_is_followed_entry_by_entry(bits, vr):
    pixels = draw(bits=12)
    entries = np.rint((np.arange(4096) / 4095) ** 2 * (2**bits - 1)).astype(np.uint16)
    given_as = entries.tobytes() if vr == "OW" else entries.tolist()
    table = lookup_table(given_as, bits=bits, vr=vr)
    # the LUT wins over the window
    data = make_dicom(pixels, bits=12, VOILUTSequence=[table], WindowCenter=1, WindowWidth=1)
    np.testing.assert_allclose(read(data), entries[pixels] / (2**bits - 1), atol=1e-6)


def test_a_lookup_table_starts_where_it_says_and_its_ends_go_on():
    pixels = draw(bits=12)
    table = lookup_table([0, 10, 20, 255], first=2000, bits=8)
    expected = np.array([0, 10, 20, 255])[(pixels.astype(int) - 2000).clip(0, 3)] / 255
    shown = read(make_dicom(pixels, bits=12, VOILUTSequence=[table]))
    np.testing.assert_allclose(shown, expected, atol=1e-6)
    signed = (pixels.astype(np.int32) - 2048).astype(np.int16)
    below = lookup_table([0, 10, 20, 255], first=-48, bits=8)
    np.testing.assert_array_equal(read(make_dicom(signed, bits=12, VOILUTSequence=[below])), shown)


def test_a_lookup_table_of_bytes_may_be_packed():
    pixels = draw(bits=12)
    entries = (np.arange(4096) // 16).astype(np.uint8)
    table = lookup_table(entries.tobytes(), bits=8, vr="OW")
    table.LUTDescriptor = [4096, 0, 8]
    shown = read(make_dicom(pixels, bits=12, VOILUTSequence=[table]))
    np.testing.assert_allclose(shown, entries[pixels] / 255, atol=1e-6)


def test_a_table_of_65536_entries_writes_its_count_as_0():
    pixels = draw(bits=16)
    entries = np.arange(65536, dtype=np.uint16)[::-1]
    table = lookup_table(entries.tobytes(), bits=16, vr="OW")
    assert table.LUTDescriptor[0] == 0
    shown = read(make_dicom(pixels, VOILUTSequence=[table]))
    np.testing.assert_allclose(shown, 1 - pixels / 65535, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_modality_lut_comes_before_the_window(bits):
    pixels = draw(bits=8)
    entries = np.rint((np.arange(256) / 255) ** 0.5 * (2**bits - 1)).astype(int)
    table = lookup_table(entries.tolist(), bits=bits)
    window = {"WindowCenter": 2**bits / 2, "WindowWidth": 2**bits, "VOILUTFunction": "LINEAR_EXACT"}
    shown = read(make_dicom(pixels, ModalityLUTSequence=[table], **window))
    np.testing.assert_allclose(shown, entries[pixels] / 2**bits, atol=1e-6)
    alone = read(make_dicom(pixels, ModalityLUTSequence=[table]))  # stretched
    np.testing.assert_allclose(alone, entries[pixels] / (2**bits - 1), atol=1e-6)


@pytest.mark.parametrize(
    "table",
    [
        lookup_table([1, 2, 3], bits=0),
        lookup_table([1, 2, 3], bits=40),
        lookup_table([], bits=8),
        Dataset(),
    ],
)
@pytest.mark.parametrize("name", ["VOILUTSequence", "ModalityLUTSequence"])
def test_damaged_lookup_tables_are_refused(table, name):
    assert "lookup table is damaged" in refusal(make_dicom(draw(bits=12), **{name: [table]}))


def test_a_lookup_table_shorter_than_it_says_is_refused():
    table = lookup_table([1, 2, 3])
    table.LUTDescriptor = [4096, 0, 8]
    assert "lookup table is damaged" in refusal(make_dicom(draw(), VOILUTSequence=[table]))


# --- orientation


def test_all_eight_orientations_of_a_frontal_picture_come_out_equal():
    upright = draw(100, height=90)
    seen = set()
    for across, down, turned in (
        ("L", "F", upright),
        ("R", "F", upright[:, ::-1]),
        ("L", "H", upright[::-1]),
        ("R", "H", upright[::-1, ::-1]),
        ("F", "L", upright.T),
        ("F", "R", upright[:, ::-1].T),
        ("H", "L", upright[::-1].T),
        ("H", "R", upright[::-1, ::-1].T),
    ):
        stored = np.ascontiguousarray(turned)
        seen.add(stored.tobytes())
        data = make_dicom(stored, PatientOrientation=[across, down])
        np.testing.assert_array_equal(read(data), read(make_dicom(upright)))
    assert len(seen) == 8


@given(
    row=st.sampled_from(["", "L", "R", "H", "F", "A", "P", "X"]),
    column=st.sampled_from(["", "L", "R", "H", "F", "A", "P", "X"]),
)
def test_an_orientation_that_is_not_frontal_turns_nothing(row, column):
    pixels = np.arange(6).reshape(2, 3)
    turned = orient(pixels, (row, column))
    frontal = {row, column} & {"L", "R"} and {row, column} & {"H", "F"}
    if not frontal:
        np.testing.assert_array_equal(turned, pixels)
    assert sorted(turned.ravel()) == list(range(6))


# --- bad files


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_file_cut_anywhere_is_refused(name):
    data = in_syntax(draw(80, bits=12), name, bits=12)
    whole = read(data)
    for cut in range(1, len(data) - 8, max(1, len(data) // 60)):
        if len(data) - cut > 40:
            refusal(data[:cut])
        else:  # only what follows the picture may be missing
            with suppress(ImageError):
                np.testing.assert_array_equal(read(data[:cut]), whole)


def test_compressed_pictures_of_another_size_than_the_header_says_are_refused():
    other = draw(128)
    for name, syntax in (("J2K", JPEG2000Lossless), ("RLE", RLELossless)):
        ds = make_dataset(other)
        ds.compress(syntax)
        ds.Rows = ds.Columns = 96
        assert "96x96" in refusal(to_bytes(ds)), name
    small = make_encapsulated(make_jpeg(other), draw(), "1.2.840.10008.1.2.4.50")
    assert "has 128x128 pixels, its header says 96x96" in refusal(small)


def test_an_encapsulated_frame_without_a_picture_is_refused():
    for syntax in (JPEG2000Lossless, RLELossless, "1.2.840.10008.1.2.4.50", "1.2.3.4"):
        message = refusal(make_encapsulated(b"no picture at all", draw(), syntax))
        assert "cannot be decoded" in message


def test_an_encapsulated_picture_without_a_fragment_is_refused():
    for syntax in (JPEG2000Lossless, RLELossless, "1.2.840.10008.1.2.4.50"):
        ds = make_dataset(draw())
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0"  # an empty offset table and no more
        ds["PixelData"].is_undefined_length = True
        ds["PixelData"].VR = "OB"
        assert "cannot be decoded" in refusal(to_bytes(ds))
        ds.add_new("ExtendedOffsetTable", "SQ", [])  # of another kind, and empty
        ds.add_new("ExtendedOffsetTableLengths", "SQ", [])
        assert "cannot be decoded" in refusal(to_bytes(ds))


def test_twelve_bit_jpeg_is_refused_with_a_remedy():
    jpeg = make_jpeg(draw())
    cut = jpeg[: jpeg.index(b"\xff\xc0") + 30]  # no decoder at hand takes the real ones either
    data = make_encapsulated(cut, draw(bits=12), JPEGExtended12Bit, bits=12)
    assert "dcmdjpeg" in refusal(data)


def test_objects_without_pixels_are_refused_and_named_by_their_modality():
    plan = make_dataset(draw(), Modality="RTPLAN", Rows=None, Columns=None)
    del plan.PixelData
    assert refusal(to_bytes(plan)) == "holds no image (modality RTPLAN)"
    named = make_dataset(draw(), Modality="RT\0^Secret", Rows=None)
    message = refusal(to_bytes(named))  # which tells no secret
    assert message.startswith("holds no image (modality ")
    assert "RT" not in message
    bare = make_dataset(draw())
    del bare.PixelData
    assert refusal(to_bytes(bare)) == "holds no pixel data"


def test_a_uid_with_a_path_is_read_as_it_is_and_leads_nowhere(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(make_dicom(draw(), StudyInstanceUID="../../etc/passwd"))
    assert read_xray_header(path).study_uid == "../../etc/passwd"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("levels", [60, 70, 5000])
@pytest.mark.parametrize("stated", [True, False])
def test_sequences_nested_too_deep_are_refused_whatever_their_length(levels, stated):
    nested = b""
    for _ in range(levels):
        if stated:
            item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(nested)) + nested
            nested = b"\x08\x00\x40\x11SQ\0\0" + struct.pack("<I", len(item)) + item
        else:
            item = b"\xfe\xff\x00\xe0" + b"\xff" * 4 + nested + b"\xfe\xff\x0d\xe0\0\0\0\0"
            nested = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + item + b"\xfe\xff\xdd\xe0\0\0\0\0"
    data = with_element(make_dicom(draw()), nested)
    if levels < 64:
        np.testing.assert_array_equal(read(data), read(make_dicom(draw())))
    else:
        assert "nested more than 64 deep" in refusal(data)


def test_a_frame_is_not_taken_for_dicom_and_dicom_not_for_another():
    assert is_dicom(make_dicom(draw()))
    assert is_dicom(in_syntax(draw(), "implicit, no preamble"))
    for data in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0 0000", b"\x08", b"\x08\0\1\2zzzz"):
        assert not is_dicom(data)


# --- real files


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "view", "age"),
    [
        ("chest/CR-MONO1-10-chest", (440, 440), "PA", None),
        ("chest/RG1_J2KI.dcm", (1955, 1841), "PA", None),
        ("chest/rsna_*.dcm", (1024, 1024), "PA", None),
        ("wrapped_nih/00000679_*.dcm", (512, 512), "PA", None),
        ("wrapped_nih/00000797_*.dcm", (1024, 1024), "AP", None),
        ("wrapped_nih/00021163_*.dcm", (1024, 1024), "AP", None),
    ],
)
def test_every_good_file_at_hand_is_read(data_root, name, shape, view, age):
    (path,) = (data_root / "cxr_dicom").glob(name)
    xray = read_xray(path)
    assert xray.pixels.shape == shape
    assert xray.pixels.dtype == np.float32
    assert xray.header.view == view
    assert 0 <= xray.pixels.min() < 0.2
    assert 0.9 < xray.pixels.max() <= 1
    assert read_xray_header(path) == xray.header


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("MR_truncated.dcm", "cannot be decoded (Explicit VR Little Endian)"),
        ("RG1_J2KI_truncated_900_bytes.dcm", "damaged DICOM file"),
        ("RG3_JPLY", "12-bit JPEG"),
        ("chrJapMulti_no_pixels.dcm", "holds no pixel data"),
        ("no_meta.dcm", "not a PNG, JPEG, DICOM or NIfTI file"),
        ("rsna_truncated_60000_bytes.dcm", "damaged DICOM file"),
        ("rtplan.dcm", "holds no image (modality RTPLAN)"),
    ],
)
def test_every_odd_file_that_is_no_radiograph_is_refused(data_root, name, said):
    with pytest.raises(ImageError) as caught:
        read_xray(data_root / "cxr_dicom" / "odd" / name)
    assert said in str(caught.value)
    assert name not in str(caught.value)
    assert str(data_root) not in str(caught.value)


@pytest.mark.data
def test_odd_files_that_can_be_read_say_what_is_odd_about_them(data_root):
    dog = read_xray_header(data_root / "cxr_dicom" / "odd" / "dx_image_canine_lateral.dcm")
    assert (dog.body_part, dog.species != "" or dog.view != "PA") == ("THORAX", True)
    leg = read_xray_header(data_root / "cxr_dicom" / "odd" / "RG3_JPLY")
    assert leg.body_part == "EXTREMITY"


def test_jpeg_lossless_is_read_or_its_decoder_named(monkeypatch):
    pixels = draw(bits=12)
    frame = ljpeg_encode(pixels, bitspersample=12)
    data = make_encapsulated(frame, pixels, JPEGLosslessSV1, bits=12)
    np.testing.assert_array_equal(read(data), read(make_dicom(pixels, bits=12)))

    def fail(*_):
        raise RuntimeError("unable to decode as the plugins are missing dependencies")

    monkeypatch.setattr("data_prep.xray_dicom.pixel_array", fail)
    assert "damaged or cut off" in refusal(data)
    monkeypatch.setattr("data_prep.xray_dicom.find_spec", lambda _: None)
    assert "decoder that is not installed; pip install 'esad-med[dicom]'" in refusal(data)
