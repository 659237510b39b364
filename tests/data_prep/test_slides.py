from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from data_prep.slides import find_slides, open_slide
from esad_med.base.errors import SlideError

COMPOSED = "composed_tumor_scannerA.tif"


@pytest.mark.data
@pytest.mark.parametrize("name", ["cmu-1-small-region.svs", COMPOSED])
def test_regions_are_openslides_pixels(data_root, name):
    path = data_root / "wsi" / name
    rng = np.random.default_rng(0)
    with open_slide(path) as ours, openslide.OpenSlide(path) as theirs:
        assert ours.size_level0 == theirs.dimensions
        for level in range(theirs.level_count):
            for _ in range(5):
                corner = tuple(int(v) for v in rng.integers(0, 1500, 2))
                expected = np.asarray(theirs.read_region(corner, level, (90, 70)))
                inside = expected[..., 3] == 255
                found = ours.read_region(corner, level, (90, 70))
                assert found.shape == (70, 90, 3)
                assert found.dtype == np.uint8
                np.testing.assert_array_equal(found[inside], expected[..., :3][inside])


@pytest.mark.data
def test_header_of_real_slides(data_root):
    with open_slide(data_root / "wsi" / "cmu-1-small-region.svs") as slide:
        assert (slide.mpp, slide.mpp_source) == (pytest.approx(0.499), "openslide.mpp-x")
        assert (slide.vendor, slide.size_level0) == ("aperio", (2220, 2967))
    with open_slide(data_root / "wsi" / COMPOSED) as slide:
        assert slide.mpp == pytest.approx(0.243)
        assert slide.level_downsamples == (1, 2, 4, 8)
        assert slide.level_sizes[-1] == (256, 256)


def test_outside_the_scan_is_white(make_slide):
    with open_slide(make_slide(np.zeros((128, 128, 3), np.uint8))) as slide:
        region = slide.read_region((64, 64), 0, (128, 128))
    assert (region[:64, :64] == 0).all()
    assert (region[64:] == 255).all()
    assert (region[:, 64:] == 255).all()


def test_mpp_is_the_mean_of_both_axes_unless_given(make_slide):
    path = make_slide(mpp=(0.50, 0.51))
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.505)
    with open_slide(path, mpp=0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.25, "given")


@pytest.mark.parametrize("unknown", [None, 25400 / 72])
def test_mpp_otherwise_is_for_slides_that_do_not_say_it(make_slide, caplog, unknown):
    with open_slide(make_slide(mpp=unknown), mpp_otherwise=0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.25, "given")
    assert not caplog.messages
    with open_slide(make_slide(mpp=0.5), mpp_otherwise=0.25) as slide:
        assert slide.mpp == pytest.approx(0.5)
    assert "0.5 µm per pixel, which is taken, not 0.25" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mpp": None}, ["no microns-per-pixel", "--slide-mpp", "manifest"]),
        ({"mpp": 25400 / 72}, ["352.8", "72 dpi", "--slide-mpp"]),
        ({"mpp": 0.001}, ["0.001", "expected 0.05 to 20"]),
        ({"mpp": (0.25, 0.30)}, ["0.25", "0.3", "in y"]),
    ],
)
def test_unusable_resolution_is_refused_and_can_be_overridden(make_slide, options, words):
    path = make_slide(**options)
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    assert all(word in str(caught.value) for word in ["slide.tif", *words])
    with open_slide(path, mpp=0.5) as slide:
        assert slide.mpp == 0.5


@pytest.mark.parametrize("mpp", [0.0, -1.0, 352.8, float("nan"), float("inf")])
def test_impossible_given_mpp_is_refused(make_slide, mpp):
    with pytest.raises(SlideError, match="was given"):
        open_slide(make_slide(), mpp=mpp)


def test_sixteen_bits_are_refused(make_slide):
    deep = np.full((256, 256, 3), 40_000, np.uint16)
    path = make_slide(deep)
    openslide.OpenSlide(path).close()  # OpenSlide itself opens it
    with pytest.raises(SlideError, match="16 bits per channel, expected 8"):
        open_slide(path)


def test_files_that_are_no_slides(tmp_path):
    (tmp_path / "empty.svs").touch()
    (tmp_path / "text.svs").write_text("not a slide")
    (tmp_path / "folder.svs").mkdir()
    for name, words in {
        "empty.svs": "empty",
        "text.svs": "not a slide",
        "folder.svs": "is a folder",
        "missing.svs": "does not exist",
    }.items():
        with pytest.raises(SlideError, match=f"{name}.*{words}"):
            open_slide(tmp_path / name)


@pytest.mark.data
def test_broken_slide_of_the_real_data(data_root):
    with pytest.raises(SlideError, match=r"broken\.svs: .*(not a slide|damaged)"):
        open_slide(data_root / "wsi" / "broken.svs")


@pytest.mark.data
@pytest.mark.parametrize("share", [0.001, 0.3, 0.9])
def test_truncated_slides_never_raise_a_library_error(data_root, tmp_path, share):
    whole = (data_root / "wsi" / COMPOSED).read_bytes()
    path = tmp_path / "cut.tif"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SlideError) as caught, open_slide(path) as slide:
        slide.read_region((0, 0), 0, slide.size_level0)
    assert str(tmp_path) not in str(caught.value)


def test_after_a_damaged_tile_the_rest_can_be_read(make_slide):
    rgb = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    with open_slide(make_slide(rgb, levels=(), damage=(5,))) as slide:  # tile (x 1, y 1)
        with pytest.raises(SlideError, match=r"slide\.tif: damaged at x=64, y=64"):
            slide.read_region((64, 64), 0, (64, 64))
        found = slide.read_region((128, 64), 0, (64, 64))
        overview = slide.read_overview(0.5)
    np.testing.assert_array_equal(found, rgb[64:128, 128:192])
    assert not overview.readable[64:128, 64:128].any()
    assert (overview.rgb[~overview.readable] == 255).all()
    np.testing.assert_array_equal(overview.rgb[overview.readable], rgb[overview.readable])


@pytest.mark.parametrize("size", [(512, 256), (333, 201)])
def test_overview_holds_exact_means(make_slide, size):
    width, height = size
    rgb = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with open_slide(make_slide(rgb, levels=())) as slide:
        thumbnail, downsample = slide.thumbnail(4.0)
    assert downsample == 8
    assert thumbnail.shape == (-(-height // 8), -(-width // 8), 3)
    rows, columns = height // 8, width // 8
    blocks = rgb[: rows * 8, : columns * 8].reshape(rows, 8, columns, 8, 3).mean((1, 3))
    np.testing.assert_allclose(thumbnail[:rows, :columns], blocks, atol=0.5)
    if width % 8:
        last = rgb[:8, columns * 8 :].mean((0, 1))
        np.testing.assert_allclose(thumbnail[0, -1], last, atol=0.5)


def test_overview_takes_the_level_that_fits(make_slide):
    rgb = np.zeros((512, 512, 3), np.uint8)
    with open_slide(make_slide(rgb, levels=(4,))) as slide:
        read = []
        slide.read_region = lambda xy, level, size: (  # type: ignore[method-assign]
            read.append(level) or np.zeros((size[1], size[0], 3), np.uint8)
        )
        assert slide.read_overview(4.0).downsample == 8
        assert slide.read_overview(0.01).downsample == 1
    assert read == [1, 0]


def test_overview_is_never_huge(make_slide):
    with open_slide(make_slide(), mpp=0.5) as slide:
        slide.size_level0 = (100_000, 80_000)
        slide.level_sizes = ((100_000, 80_000),)
        slide.level_downsamples = (1.0,)
        slide.read_region = (
            lambda xy, level, size: np.zeros(  # type: ignore[method-assign]
                (size[1], size[0], 3), np.uint8
            )[:1, :1]
        )
        assert np.prod(slide.read_overview(0.5).readable.shape) <= 2**24


def test_fingerprint_follows_the_content(make_slide):
    first, second = make_slide(), make_slide(name="copy.tif")
    marks = [open_slide(path).fingerprint for path in (first, second)]
    assert marks[0] == marks[1]
    content = bytearray(second.read_bytes())
    content[-1] ^= 1
    second.write_bytes(content)
    with open_slide(second) as slide:
        assert slide.fingerprint != marks[0]
        assert len(slide.fingerprint) == 64


def test_fingerprint_of_mrxs_includes_its_index(tmp_path):
    from data_prep.slide_header import fingerprint_file

    path = tmp_path / "s.mrxs"
    path.write_bytes(b"picture")
    alone = fingerprint_file(path)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "Index.dat").write_bytes(b"index")
    assert fingerprint_file(path) != alone


def test_slides_of_a_folder_by_suffix_and_name(tmp_path):
    for name in ("b.SVS", "a.tif", "notes.txt", "c.xml"):
        (tmp_path / name).touch()
    (tmp_path / "d.tif").mkdir()
    assert [path.name for path in find_slides(tmp_path)] == ["a.tif", "b.SVS"]


def test_a_tiff_of_one_pixel_per_unit_has_no_mpp(tmp_path):
    path = tmp_path / "plain.tif"
    tifffile.imwrite(path, np.zeros((128, 128, 3), np.uint8), tile=(64, 64), photometric="rgb")
    with pytest.raises(SlideError, match="no microns-per-pixel"):
        open_slide(path)


def test_asking_for_an_impossible_region_is_a_callers_mistake(make_slide):
    with open_slide(make_slide()) as slide:
        for level, size in ((9, (10, 10)), (0, (100_000, 100_000))):
            with pytest.raises(ValueError, match="out of bounds"):
                slide.read_region((0, 0), level, size)


def test_path_may_be_a_string_in_a_notebook(make_slide):
    with open_slide(str(make_slide())) as slide:  # type: ignore[arg-type]
        assert isinstance(slide.path, Path)


@pytest.mark.parametrize("most", [90_000, 25_000, 7_000])
def test_no_overview_is_larger_than_the_most_pixels_asked_for(make_slide, most, monkeypatch):
    monkeypatch.setattr("data_prep.slides._OVERVIEW_PIXELS", most)
    rgb = np.random.default_rng(1).integers(0, 256, (500, 700, 3), dtype=np.uint8)
    with open_slide(make_slide(rgb, levels=(2,))) as slide:
        overview = slide.read_overview(0.01)
    assert most / 5 < overview.rgb.shape[0] * overview.rgb.shape[1] <= most
    assert overview.rgb.shape[1] == -(-700 // overview.downsample)
