"""Pictures of radiographs: true to the image, residuals where they are, captions whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from esad_med.base.errors import ConfigError
from esad_med.outputs.radiograph import (
    _fit_font,
    _wrap,
    caption,
    draw_legend,
    overlay,
    shrink,
    write_png,
)

SIZES = st.integers(1, 90)
SEEDS = st.integers(0, 2**32 - 1)
LIMITS = (0.2, 0.8)


def random_image(seed, height, width):
    return np.random.default_rng(seed).random((height, width), dtype=np.float32)


def gray_picture(height=120, width=100, level=100):
    return np.full((height, width), level, dtype=np.uint8)


def is_gray(picture):
    return (picture == picture[..., :1]).all(axis=-1)


def inside_crop(height, width, share):
    """The crop, and the ring of two pixels around it that may hold the frame."""
    rows, columns = round(height * (1 - share) / 2), round(width * (1 - share) / 2)
    mask = np.zeros((height, width), dtype=bool)
    mask[rows : height - rows, columns : width - columns] = True
    near = np.zeros_like(mask)
    top, left = max(0, rows - 2), max(0, columns - 2)
    near[top : height - rows + 2, left : width - columns + 2] = True
    return mask, near


@given(SEEDS, SIZES, SIZES, st.integers(1, 100))
def test_shrinking_keeps_mean_and_aspect_and_never_enlarges(seed, height, width, longest):
    image = random_image(seed, height, width)
    small = shrink(image, longest)
    zoom = min(1, longest / max(height, width))
    assert small.shape == (max(1, round(height * zoom)), max(1, round(width * zoom)))
    assert max(small.shape) == min(longest, max(height, width))
    assert abs(small.mean() / 255 - image.mean()) <= 0.5 / 255 + 1e-5
    assert (small >= np.floor(image.min() * 255)).all()
    assert (small <= np.ceil(image.max() * 255)).all()


def test_a_shrunk_pixel_is_the_mean_of_its_area():
    image = np.array([[0.0, 0.6, 1.0], [0.0, 0.6, 1.0], [0.3, 0.3, 0.3]], dtype=np.float32)
    # The middle row and column count half on either side: (0 + .3) / 1.5 = .2, and so on.
    top = [255 * (0.0 + 0.3) / 1.5, 255 * (0.3 + 1.0) / 1.5]
    bottom = [(0.5 * value + 255 * 0.3) / 1.5 for value in top]
    assert np.abs(shrink(image, 2) - np.array([top, bottom])).max() <= 0.5 + 1e-4


def test_a_small_image_keeps_each_pixel_and_values_outside_are_clipped():
    image = np.array([[-0.5, 0.0, 0.5], [1.0, 1.5, 0.2]], dtype=np.float32)
    assert shrink(image).tolist() == [[0, 0, 128], [255, 255, 51]]


@pytest.mark.parametrize(
    ("image", "longest"),
    [
        (np.zeros((2, 2, 3), np.float32), 8),
        (np.zeros((0, 4), np.float32), 8),
        (np.full((2, 2), np.nan, np.float32), 8),
        (np.zeros((2, 2), np.float32), 0),
    ],
)
def test_what_is_no_image_is_not_shrunk(image, longest):
    with pytest.raises(ValueError, match="expected"):
        shrink(image, longest)


@given(SEEDS, st.integers(8, 90), st.integers(8, 90), st.floats(0.3, 1.0))
def test_outside_the_crop_there_is_only_the_radiograph_in_gray(seed, height, width, share):
    picture = (random_image(seed, height, width) * 255).astype(np.uint8)
    colored = overlay(picture, random_image(seed, 8, 8) + 1, crop_share=share, limits=LIMITS)
    assert colored.shape == (height, width, 3)
    assert colored.dtype == np.uint8
    inside, near = inside_crop(height, width, share)
    assert is_gray(colored)[~inside].all()
    assert (colored[~near] == picture[~near][:, None]).all()
    assert not is_gray(colored)[inside].any()  # above the upper limit, all of it


@given(SEEDS, st.floats(0.3, 1.0))
def test_a_residual_up_to_the_lower_limit_leaves_the_gray(seed, share):
    picture = (random_image(seed, 40, 50) * 255).astype(np.uint8)
    residual = random_image(seed, 16, 16) * LIMITS[0]
    colored = overlay(picture, residual, crop_share=share, limits=LIMITS)
    inside, _ = inside_crop(40, 50, share)
    assert (colored[inside] == picture[inside][:, None]).all()


@given(SEEDS)
def test_more_residual_never_hides_less_of_the_radiograph(seed):
    residual = random_image(seed, 8, 8)

    def see_through(residual):
        """What is left between black and white, 0-255."""
        black, white = (
            overlay(gray_picture(32, 32, level), residual, crop_share=1.0, limits=LIMITS)
            for level in (0, 255)
        )
        return white.astype(int) - black

    less, more = see_through(residual), see_through(residual + np.float32(0.2))
    assert (more <= less + 1).all()  # each of the two is rounded
    assert more.mean() < less.mean()
    assert more.min() >= round(0.4 * 255) - 1


def test_on_black_the_strongest_color_is_sixty_percent_and_brightness_rises():
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    row = overlay(gray_picture(64, 64, 0), ramp, crop_share=1.0, limits=LIMITS)[32].astype(int)
    assert (np.diff(row[:, :2], axis=0) >= 0).all()
    assert (row[ramp[0] <= LIMITS[0]] == 0).all()
    top = row[ramp[0] >= LIMITS[1]]
    assert (top == top[0]).all()
    white = overlay(gray_picture(4, 4, 255), np.ones((2, 2)), crop_share=1.0, limits=LIMITS)
    assert np.abs(white[0, 0].astype(int) - top[0] - round(0.4 * 255)).max() <= 1


def test_the_color_lies_where_the_residual_is():
    residual = np.zeros((8, 8), dtype=np.float32)
    residual[1, 6] = 1  # upper right
    colored = overlay(gray_picture(400, 200), residual, crop_share=0.5, limits=LIMITS)
    y, x = (axis.mean() for axis in np.nonzero(~is_gray(colored)))
    assert y == pytest.approx(100 + 200 * 1.5 / 8, abs=1)
    assert x == pytest.approx(50 + 100 * 6.5 / 8, abs=1)


def test_a_residual_is_enlarged_smoothly():
    residual = np.array([[0, 1], [0, 1]], dtype=np.float32)
    picture = gray_picture(64, 64, 0)
    row = overlay(picture, residual, crop_share=1.0, limits=(0.0, 1.0))[0].astype(int)
    assert np.abs(np.diff(row, axis=0)).max() <= 16
    assert row[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("level", [0, 60, 127, 128, 200, 255])
def test_the_frame_is_seen_on_any_gray_and_ends_where_the_crop_begins(level):
    picture = gray_picture(level=level)
    framed = overlay(picture, np.zeros((4, 4)), crop_share=0.5, limits=LIMITS)
    changed = (framed != picture[..., None]).any(axis=2)
    wanted = np.zeros_like(changed)
    wanted[29:91, 24:76] = True
    wanted[30:90, 25:75] = False
    assert (changed == wanted).all()
    assert np.abs(framed[changed].astype(int) - level).min() >= 60


def test_a_crop_of_everything_has_no_frame():
    picture = gray_picture()
    whole = overlay(picture, np.zeros((4, 4)), crop_share=1.0, limits=LIMITS)
    assert (whole == picture[..., None]).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_pictures_of_any_shape_take_a_residual(shape):
    picture = np.zeros(shape, dtype=np.uint8)
    colored = overlay(picture, np.ones((8, 8)), crop_share=0.01, limits=LIMITS)
    assert colored.shape == (*shape, 3)
    assert (~is_gray(colored)).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"picture": np.zeros((4, 4, 3), np.uint8)},
        {"picture": np.zeros((4, 4), np.float32)},
        {"residual": np.zeros((4, 5), np.float32)},
        {"residual": np.full((4, 4), np.inf, np.float32)},
        {"crop_share": 0.0},
        {"crop_share": 1.01},
        {"limits": (0.5, 0.5)},
        {"limits": (0.0, np.nan)},
    ],
)
def test_overlays_that_cannot_be(changes):
    values = {
        "picture": gray_picture(),
        "residual": np.zeros((4, 4), np.float32),
        "crop_share": 0.75,
        "limits": LIMITS,
    } | changes
    with pytest.raises(ValueError, match="expected"):
        overlay(values.pop("picture"), values.pop("residual"), **values)


def test_the_legend_begins_without_color_and_ends_with_the_strongest():
    legend = draw_legend(100)
    assert legend.shape == (8, 100, 3)
    assert is_gray(legend)[:, 0].all()
    red_and_green = legend[0, :, :2].astype(int)
    assert (np.diff(red_and_green, axis=0) >= -1).all()
    assert (red_and_green[-1] - red_and_green[0] >= 80).all()


@given(
    SEEDS,
    st.integers(1, 40),
    st.integers(16, 300),
    st.lists(st.text(max_size=60), max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_a_caption_never_touches_the_picture_and_never_reaches_the_edge(seed, height, width, lines):
    picture = (random_image(seed, height, width * 3) * 255).astype(np.uint8)
    picture = picture.reshape(height, width, 3)
    before = picture.copy()
    framed = caption(picture, lines)
    assert (picture == before).all()
    assert framed.dtype == np.uint8
    assert framed.shape[1:] == (width, 3)
    assert (framed[:height] == picture).all()
    band = framed[height:]
    assert is_gray(band).all()
    assert (len(band) > 0) == bool(lines)
    if lines:
        assert not band[:, -1].any()
        assert not band[-1].any()


@given(st.text(max_size=300), st.integers(16, 700))
@settings(deadline=None, max_examples=60)
def test_wrapped_lines_fit_and_lose_no_letter(line, width):
    font = _fit_font(line, width, width - 4)
    parts = _wrap(line, font, width - 4)
    assert all(font.getlength(part) <= width - 4 for part in parts)
    assert "".join("".join(parts).split()) == "".join(line.split())


def test_lines_break_at_spaces_where_they_can():
    font = _fit_font("", 512, 480)
    line = "reconstruction 1.2, norm 3.4: the map shows the reconstruction term only, no more " * 2
    parts = _wrap(line, font, 480)
    assert len(parts) > 1
    assert " ".join(parts) == line.strip()


def test_all_of_a_long_line_is_drawn():
    """Each word is a block of its own ink: as much in five lines as in one."""
    picture = np.zeros((4, 200, 3), dtype=np.uint8)
    one = int(caption(picture, ["MMMM"]).sum())
    many = caption(picture, [" ".join(["MMMM"] * 20)])
    assert int(many.sum()) == pytest.approx(20 * one, rel=0.02)
    assert len(many) > 3 * len(caption(picture, ["MMMM"])) - 12


def test_signs_of_the_field_have_letters():
    picture = np.zeros((4, 400, 3), dtype=np.uint8)
    shapes = [caption(picture, [sign]).tobytes() for sign in "≥µ–λ×"]
    missing = caption(picture, ["\ue000"]).tobytes()
    assert len({*shapes, missing}) == 6


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((20, 20), np.uint8),
        np.zeros((20, 20, 3), np.float32),
        np.zeros((20, 15, 3), np.uint8),
    ],
)
def test_what_cannot_carry_a_caption(picture):
    with pytest.raises(ValueError, match="expected"):
        caption(picture, ["text"])


@pytest.mark.parametrize("shape", [(30, 20), (30, 20, 3)])
def test_a_png_keeps_each_pixel_and_is_the_same_every_time(tmp_path, shape):
    picture = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    write_png(tmp_path / "a.png", picture)
    write_png(tmp_path / "b.png", picture)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert (np.asarray(image) == picture).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_png_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        write_png(tmp_path / "missing" / "a.png", gray_picture())
