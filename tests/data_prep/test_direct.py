"""Direct decoding of TIFF tiles: OpenSlide's pixels, or OpenSlide itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from data_prep.direct import DirectReader, _TileCache
from data_prep.large_slides import BLOCK, compose_large_slide
from data_prep.slides import Slide, open_slide
from data_prep.tiles import TileSpec, plan_tiles, read_tiles
from data_prep.tissue import TissueSpec, find_tissue
from esad_med.base.errors import SlideError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
EDGE = 1024


@pytest.fixture(scope="module")
def picture() -> Pixels:
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 250, (EDGE // 16, EDGE // 16, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((16, 16, 1), np.uint8))


def write_tiff(path: Path, levels: list[Pixels], *, tile: int = 256, **options: Any) -> Path:
    """A flat tiled pyramid of 0.25 µm per pixel."""
    settings = {"compression": "jpeg", "photometric": "rgb", **options}
    with tifffile.TiffWriter(path) as writer:
        for number, level in enumerate(levels):
            per_cm = 1e4 / 0.25 * level.shape[1] / levels[0].shape[1]
            writer.write(
                level,
                tile=(tile, tile),
                subfiletype=int(number > 0),
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
                **settings,
            )
    return path


@pytest.fixture
def pyramid(tmp_path: Path, picture: Pixels) -> Path:
    return write_tiff(tmp_path / "a.tif", [picture, picture[::4, ::4]])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the tiles that were decoded directly, in order."""
    seen: list[int] = []
    decode = DirectReader._decode

    def note(self: DirectReader, level: Any, index: int) -> Any:
        seen.append(index)
        return decode(self, level, index)

    monkeypatch.setattr(DirectReader, "_decode", note)
    return seen


def both(path: Path, read: Callable[[Slide], Pixels], monkeypatch: pytest.MonkeyPatch) -> Pixels:
    """What is read directly, after comparing it with OpenSlide alone."""
    with open_slide(path, mpp=0.25) as slide:
        fast = read(slide)
    monkeypatch.setenv("ESAD_PLAIN", "reader")
    with open_slide(path, mpp=0.25) as slide:
        plain = read(slide)
    monkeypatch.delenv("ESAD_PLAIN")
    np.testing.assert_array_equal(fast, plain)
    return fast


@pytest.mark.parametrize(
    ("xy", "level", "size"),
    [
        ((0, 0), 0, (64, 64)),
        ((200, 130), 0, (300, 200)),  # over several tiles
        ((960, 960), 0, (64, 64)),  # the last corner
        ((960, 960), 0, (128, 128)),  # over the edge: white there
        ((-32, 0), 0, (64, 64)),
        ((256, 512), 1, (64, 64)),
        ((258, 512), 1, (64, 64)),  # between two pixels of the level
        ((0, 0), 1, (256, 256)),
    ],
)
def test_regions_are_openslides_pixels(
    pyramid: Path,
    monkeypatch: pytest.MonkeyPatch,
    xy: tuple[int, int],
    level: int,
    size: tuple[int, int],
) -> None:
    found = both(pyramid, lambda slide: slide.read_region(xy, level, size), monkeypatch)
    assert found.shape == (size[1], size[0], 3)


def test_each_tile_is_decoded_once_whatever_is_read_of_it(
    pyramid: Path, decoded: list[int]
) -> None:
    with open_slide(pyramid) as slide:
        for y in range(0, EDGE, 64):
            for x in range(0, EDGE, 64):
                slide.read_region((x, y), 0, (64, 64))
    compared = decoded[:5]  # with OpenSlide, before the first is used
    assert compared == [0, 3, 7, 11, 15]
    assert sorted(decoded[5:]) == list(range(16))


def test_a_level_of_a_fractional_downsample_is_left_to_openslide(
    tmp_path: Path, picture: Pixels, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture[:1001, :1021], picture[::4, ::4][:250, :255]])
    both(path, lambda slide: slide.read_region((256, 256), 1, (64, 64)), monkeypatch)
    assert not decoded
    both(path, lambda slide: slide.read_region((256, 256), 0, (64, 64)), monkeypatch)
    assert decoded


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "deflate"},
        {"compression": "jpeg", "photometric": "rgb", "subsampling": (1, 1)},
        {"compression": "jpeg", "photometric": "rgb", "tile": 240},
    ],
)
def test_other_layouts_give_the_same_pixels_too(
    tmp_path: Path, picture: Pixels, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture], **options)
    both(path, lambda slide: slide.read_region((100, 100), 0, (400, 300)), monkeypatch)


def damage(path: Path, tile: int, change: Callable[[bytearray], None]) -> None:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        start, count = page.dataoffsets[tile], page.databytecounts[tile]
    data = bytearray(path.read_bytes())
    part = data[start : start + count]
    change(part)
    data[start : start + count] = part
    path.write_bytes(data)


def zeros(part: bytearray) -> None:
    part[len(part) // 2 : len(part) // 2 + 100] = bytes(100)


def cut_off(part: bytearray) -> None:
    part[len(part) // 2 :] = bytes(len(part) - len(part) // 2)


def no_header(part: bytearray) -> None:
    part[:20] = bytes(20)


def other_start(part: bytearray) -> None:
    part[1] ^= 1


@pytest.mark.parametrize("change", [zeros, cut_off, no_header, other_start])
@pytest.mark.parametrize("plain", ["", "reader"])
def test_a_damaged_tile_is_reported_and_its_neighbors_are_read(
    pyramid: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[bytearray], None],
    plain: str,
    picture: Pixels,
) -> None:
    damage(pyramid, 6, change)  # not one of those that are compared first
    monkeypatch.setenv("ESAD_PLAIN", plain)
    with open_slide(pyramid) as slide:
        slide.read_region((0, 0), 0, (64, 64))
        with pytest.raises(SlideError, match=r"damaged at x=512, y=256 .level 0"):
            slide.read_region((512, 256), 0, (64, 64))
        after = slide.read_region((256, 256), 0, (64, 64))
    assert abs(after.astype(int) - picture[256:320, 256:320]).mean() < 6


def test_a_tile_that_was_not_stored_is_as_openslide_shows_it(
    pyramid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tifffile.TiffFile(pyramid, mode="r+b") as tiff:
        counts = list(tiff.pages.first.databytecounts)
        counts[6] = 0
        tiff.pages.first.tags["TileByteCounts"].overwrite(counts)
    both(pyramid, lambda slide: slide.read_region((400, 200), 0, (300, 200)), monkeypatch)


def test_offsets_beyond_the_file_are_left_to_openslide(pyramid: Path, decoded: list[int]) -> None:
    with tifffile.TiffFile(pyramid, mode="r+b") as tiff:
        offsets = list(tiff.pages.first.dataoffsets)
        offsets[6] = 1 << 30
        tiff.pages.first.tags["TileOffsets"].overwrite(offsets)
    with open_slide(pyramid) as slide:
        slide.read_region((0, 0), 0, (64, 64))
        with pytest.raises(SlideError, match="damaged at"):
            slide.read_region((512, 256), 0, (64, 64))
    assert not decoded


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    ["cmu-1-small-region.svs", "composed_tumor_scannerA.tif", "composed_normal_scannerB.tif"],
)
def test_real_slides_are_read_as_openslide_reads_them(
    data_root: Path, name: str, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    path = data_root / "wsi" / name

    def read(slide: Slide) -> Pixels:
        grid = plan_tiles(slide, find_tissue(slide, TissueSpec()), TileSpec())
        return np.concatenate([batch.tiles for batch in read_tiles(slide, grid)])

    tiles = both(path, read, monkeypatch)
    assert len(tiles) > 4
    assert decoded  # an Aperio file holds RGB without saying so


def test_a_large_slide_is_a_true_pyramid_read_alike_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    path = tmp_path / "large.tif"
    assert compose_large_slide(path, BLOCK + 1) == 2 * BLOCK
    with open_slide(path) as slide:
        assert slide.level_downsamples == (1, 2, 4, 8, 16)
        assert slide.mpp == pytest.approx(0.25)
        fine = slide.read_region((2048, 2048), 0, (2048, 2048)).astype(float)
        coarse = slide.read_region((2048, 2048), 4, (128, 128)).astype(float)
    means = fine.reshape(128, 16, 128, 16, 3).mean((1, 3))
    assert np.corrcoef(means.ravel(), coarse.ravel())[0, 1] > 0.95  # but for the JPEG
    both(path, lambda slide: slide.read_overview(8.0).rgb, monkeypatch)
    assert decoded


def test_what_lies_behind_is_forgotten_first_then_what_is_furthest_ahead() -> None:
    tile = np.zeros((2, 2, 3), np.uint8)
    cache = _TileCache(most_bytes=3 * tile.nbytes)

    def known() -> list[int]:
        return [index for index in range(100) if cache.get(4, index) is not None]

    for index in (50, 10, 90):
        cache.put(4, index, tile)
    cache.put(4, 20, tile)  # 10 is behind
    assert known() == [20, 50, 90]
    cache.put(4, 5, tile)  # nothing is behind
    assert known() == [5, 20, 50]
    cache.put(4, 6, tile)
    assert known() == [6, 20, 50]
    assert cache.get(3, 20) is None
    cache.put(3, 1, tile)  # another level
    assert known() == []
    assert cache.get(3, 1) is tile
    huge = np.zeros((9, 9, 3), np.uint8)
    cache.put(3, 0, huge)  # larger than all that may be kept: still used once
    assert cache.get(3, 0) is huge
