"""Every page as people see it: light and dark, on a laptop and a phone, and nothing leaves here."""

import shutil
import threading
from itertools import product

import numpy as np
import pytest
from browser import LAPTOP, PHONE, Browser, needs_browser
from test_worklist import full_page

from data_prep.slides import open_slide
from esad_med.base.errors import ConfigError
from esad_med.base.runs import read_json, write_json
from pipelines.viewing import ScreenedFolder, ViewSpec
from pipelines.viewing_files import write_viewers
from pipelines.viewing_server import Site, ViewServer
from pipelines.viewing_slides import SlideFiles

pytestmark = [needs_browser, pytest.mark.usefixtures("openseadragon")]

VIEWER = "tumor_1/viewer/index.html"
PAGES = ("index.html", VIEWER, "tumor_1/report.html", "worklist.html")
LOOKS = list(product((LAPTOP, PHONE), (False, True)))
READY = "viewer?.world.getItemCount() === 2 && [0, 1].every(isLoaded)"
IS_LOADED = "globalThis.isLoaded = (i) => viewer.world.getItemAt(i).getFullyLoaded()"
EVIL = "<script>document.body.dataset.ran = 'yes'</script><img src='https://elsewhere.example/x'>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def folder(screening, composed, tmp_path_factory):
    """A calibrated detector's folder with viewers as files, and a worklist beside them."""
    out = shutil.copytree(screening, tmp_path_factory.mktemp("pages") / "out")
    for name, outcome, p_value in (("tumor_1", "alarm", 0.004), ("normal_1", "no alarm", 0.6)):
        found = read_json(out / name / "slide.json", ConfigError)
        decision = {"outcome": outcome, "p_value": p_value, "rule": "conformal"}
        write_json(out / name / "slide.json", {**found, "decision": decision})
    files = SlideFiles([composed])
    write_viewers(ScreenedFolder.read(out), files, ViewSpec(), say=lambda _: None)
    (out / "worklist.html").write_text(full_page(), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def addresses(folder, composed):
    """Where the pages are: as files, and from the server."""
    site = Site(ScreenedFolder.read(folder), SlideFiles([composed]), ViewSpec())
    with ViewServer(site, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield {"files": folder.as_uri() + "/", "served": server.url}
        server.shutdown()
        thread.join()
        site.close()


def open_viewer(browser, address, **look):
    """A viewer with all of its first tiles and its heat map there."""
    browser.open(address + VIEWER, **look)
    return steady(browser)


def loaded(browser):
    """Waits until a viewer has all tiles that it shows, and the heat map."""
    browser.js(IS_LOADED)
    browser.wait(READY)


def steady(browser):
    """A viewer's picture, once it is loaded and does not move any more."""
    loaded(browser)
    before = browser.picture()
    while not np.array_equal(before, after := browser.picture()):
        before = after
    return after


def slide_of(picture, size):
    """The part of a viewer's picture that is all slide."""
    width = size[0] - 340 if size == LAPTOP else size[0]
    return picture[220:480, 20 : width - 20].astype(int)


@pytest.mark.parametrize(("size", "dark"), LOOKS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_says_what_it_is_for_and_is_as_dark_as_asked(
    browser, addresses, tmp_path, name, size, dark
):
    browser.open(addresses["files"] + name, size=size, dark=dark)
    if name == VIEWER:
        loaded(browser)
    picture = browser.picture(tmp_path / "page.png")
    assert picture.shape[:2] == size[::-1]
    assert browser.overflows() == []
    assert "Research use only" in browser.js("document.body.innerText")
    corner = "main" if name != VIEWER else "aside"
    box = browser.js(f"document.querySelector('{corner}').getBoundingClientRect().toJSON()")
    ground = picture[int(box["top"]) + 6, int(box["left"]) + 5].astype(int)
    assert ground.mean() < 45 if dark else ground.mean() > 225
    ink = browser.js("getComputedStyle(document.querySelector('h1')).color")
    brightness = np.mean([int(part) for part in ink[4:-1].split(",")])
    assert abs(brightness - ground.mean()) > 130
    assert browser.console == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("where", ["files", "served"])
def test_no_request_leaves_this_machine(browser, addresses, where, name):
    if (where, name) == ("served", "worklist.html"):
        pytest.skip("a worklist is no part of a screening")
    browser.open(addresses[where] + name)
    if name == VIEWER:
        open_viewer(browser, addresses[where])
        browser.press("n")
        steady(browser)
    asked = [url for url in browser.requests if not url.startswith("data:")]
    assert asked
    root = addresses[where] if where == "files" else addresses[where].split("/", 3)[0] + "//127."
    assert [url for url in asked if not url.startswith(root)] == []
    assert browser.console == []


def test_a_request_that_would_leave_is_seen_and_refused(browser, folder, addresses):
    """Or the test before this one could not fail."""
    page = (folder / VIEWER).read_text().replace("<aside>", f"<aside>{EVIL}")
    (folder / "tumor_1" / "viewer" / "evil.html").write_text(page)
    browser.open(addresses["files"] + "tumor_1/viewer/evil.html")
    loaded(browser)
    refused = " ".join(browser.console)
    assert "inline script" in refused
    assert "elsewhere.example" in refused
    assert browser.js("document.body.dataset.ran") is None
    browser.open("data:text/html,<img src='http://elsewhere.example/x'>")
    assert [url for url in browser.requests if "elsewhere" in url]
    assert "ERR_NAME_NOT_RESOLVED" in " ".join(browser.console)


@pytest.mark.parametrize("where", ["files", "served"])
def test_the_viewer_shows_the_slide_and_the_map_by_its_opacity(browser, addresses, composed, where):
    open_viewer(browser, addresses[where], size=LAPTOP)
    browser.press("o")
    plain = slide_of(steady(browser), LAPTOP)
    assert browser.js("document.getElementById('shown').checked") is False
    with open_slide(composed / "tumor_1.tif") as slide:
        overview, _ = slide.thumbnail(4.0)
    tissue = plain[plain.mean(axis=2) < 200]
    known = overview[overview.mean(axis=2) < 200]
    assert len(tissue) > 10_000
    np.testing.assert_allclose(tissue.mean(axis=0), known.mean(axis=0), atol=25)
    browser.press("o")
    some = slide_of(steady(browser), LAPTOP)
    browser.js(
        "(() => { const e = document.getElementById('opacity'); e.value = 100;"
        " e.dispatchEvent(new Event('input')); })()"
    )
    full = slide_of(steady(browser), LAPTOP)
    changed = np.abs(full - plain).max(axis=2) > 40
    assert changed.mean() > 0.2
    share = np.abs(some - plain)[changed].sum() / np.abs(full - plain)[changed].sum()
    assert share == pytest.approx(0.45, abs=0.08)


def test_keys_and_buttons_go_from_tile_to_tile(browser, addresses):
    before = open_viewer(browser, addresses["files"], size=LAPTOP)
    told = "document.getElementById('current').textContent"
    browser.press("n")
    first = steady(browser)
    assert "Tile 1 of" in browser.js(told)
    assert (np.abs(slide_of(first, LAPTOP) - slide_of(before, LAPTOP)) > 30).mean() > 0.2
    outline = (np.abs(first.astype(int) - (227, 0, 123)) < 12).all(axis=2)
    rows, columns = np.nonzero(outline[:, :1020])
    center = browser.js(
        "(() => { const b = document.getElementById('slide').getBoundingClientRect();"
        " return [b.y + b.height / 2, b.x + b.width / 2]; })()"
    )
    np.testing.assert_allclose((rows.mean(), columns.mean()), center, atol=4)
    for key, rank in (("n", 2), ("n", 3), ("p", 2)):
        browser.press(key)
        assert f"Tile {rank} of" in browser.js(told)
    browser.js("document.getElementById('previous').click()")
    browser.press("p")  # there is none before the first
    for word in ("Tile 1 of", "score", "percentile", "reconstruction", "norm"):
        assert word in browser.js(told)
    assert browser.js("document.querySelectorAll('.list [aria-current]').length") == 1
    browser.press("0")
    back = slide_of(steady(browser), LAPTOP)
    assert (np.abs(back - slide_of(before, LAPTOP)) > 30).mean() < 0.05
    for key in ("ArrowRight", "+", "-", "ArrowUp"):
        browser.press(key)
        now = slide_of(steady(browser), LAPTOP)
        assert (np.abs(now - back) > 30).mean() > 0.02, key
        back = now
    browser.press("?")
    assert browser.js("document.getElementById('help').open")


def test_the_scale_bar_is_as_long_as_it_says(browser, addresses):
    open_viewer(browser, addresses["files"], size=LAPTOP)
    length = "document.getElementById('scale').getBoundingClientRect().width"
    mpp = "data.mpp / viewer.world.getItemAt(0).viewportToImageZoom(viewer.viewport.getZoom(true))"
    for _ in range(4):
        number, unit = browser.js("document.querySelector('#scale span').textContent").split()
        um = float(number) * {"µm": 1, "mm": 1000}[unit]
        assert browser.js(length) * browser.js(mpp) == pytest.approx(um, rel=0.02)
        assert 25 <= browser.js(length) <= 141
        browser.press("+")
        browser.press("+")
        steady(browser)


def test_what_is_focused_is_seen(browser, addresses):
    for name, selector in (("index.html", "#slides button"), (VIEWER, "#next")):
        browser.open(addresses["files"] + name)
        browser.press("Tab")  # the keyboard is in use
        browser.js(f"document.querySelector('{selector}').focus()")
        style = f"getComputedStyle(document.querySelector('{selector}'))"
        assert browser.js(f"{style}.outlineStyle") == "solid"
        assert browser.js(f"{style}.outlineWidth") == "3px"


def test_every_control_has_a_name(browser, addresses):
    for name in ("index.html", VIEWER):
        browser.open(addresses["files"] + name)
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        kinds = ("button", "slider", "checkbox", "searchbox", "combobox", "link", "image")
        found = [(n["role"]["value"], n["name"]["value"]) for n in nodes if n.get("name")]
        controls = [(role, text) for role, text in found if role in kinds]
        assert len(controls) > 5
        assert [role for role, text in controls if not text.strip()] == []


def test_the_index_is_sorted_and_filtered(browser, addresses):
    browser.open(addresses["served"] + "index.html")
    names = "[...document.querySelectorAll('#slides tbody tr:not([hidden]) th')]"
    shown = f"{names}.map((th) => th.firstChild.textContent)"
    heads = "[...document.querySelectorAll('#slides th[data-sort]')]"
    start = browser.js(shown)
    assert sorted(start) == ["normal_1", "tumor_1"]
    for column, want in ((0, sorted(start)), (1, ["tumor_1", "normal_1"]), (3, start)):
        browser.js(f"{heads}[{column}].querySelector('button').click()")
        assert browser.js(shown) == want
        first = browser.js(f"{heads}[{column}].getAttribute('aria-sort')")
        browser.js(f"{heads}[{column}].querySelector('button').click()")
        assert browser.js(shown) == want[::-1]
        second = browser.js(f"{heads}[{column}].getAttribute('aria-sort')")
        assert {first, second} == {"ascending", "descending"}
    choose = "e.dispatchEvent(new Event('input', { bubbles: true }))"
    for value, want in (("alarm", ["tumor_1"]), ("", ["normal_1", "tumor_1"])):
        browser.js(
            f"(() => {{ const e = document.getElementById('decision'); e.value = '{value}';"
            f" {choose}; }})()"
        )
        assert sorted(browser.js(shown)) == want
    browser.js("document.getElementById('text').focus()")
    for key in "TUM":
        browser.press(key)
    assert browser.js(shown) == ["tumor_1"]
    assert browser.js("document.getElementById('count').textContent") == "1 of 2 slides"
    assert browser.js("[...document.images].every((i) => i.loading === 'lazy')")


def test_without_scripts_the_index_is_still_read(browser, addresses):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(addresses["files"] + "index.html")
        tree = browser.call("Accessibility.getFullAXTree")["nodes"]
        texts = " ".join(node["name"]["value"] for node in tree if node.get("name"))
        assert "tumor_1" in texts
        assert "lost.tif: the file is empty" in texts
        assert "searchbox" not in {node["role"]["value"] for node in tree if node.get("role")}
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
