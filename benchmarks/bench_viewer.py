"""The viewer's tiles: cut by us and by OpenSlide's deep zoom, and as the server answers them.

.venv/bin/python -m benchmarks.bench_viewer [--edge 30000] [--tiles 60]
"""

import argparse
import io
import tempfile
import threading
import time
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import openslide
from openslide.deepzoom import DeepZoomGenerator

from data_prep.deep_zoom import DeepZoom, ZoomGrid
from data_prep.large_slides import compose_large_slide
from data_prep.slides import open_slide
from esad_med.outputs.heatmap import write_heatmap
from pipelines.viewing import ScreenedFolder, SlideFacts, ViewSpec
from pipelines.viewing_server import Site, ViewServer
from pipelines.viewing_slides import SlideFiles

_QUALITY = ViewSpec().quality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", type=int, default=30_000, help="of the composed slide, pixels")
    parser.add_argument("--tiles", type=int, default=60, help="per level and way")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slides" / "large.tif"
        path.parent.mkdir()
        edge = compose_large_slide(path, arguments.edge)
        print(f"composed slide of {edge} px, {path.stat().st_size / 1e6:.0f} MB")
        time_cutting(path, arguments.tiles)
        time_serving(path, Path(folder) / "screened", arguments.tiles)


def addresses(grid: ZoomGrid, count: int) -> list[tuple[int, int, int]]:
    random = np.random.default_rng(0)
    levels = range(len(grid.sizes) - 1, grid.first_level + 1, -1)
    return [
        (level, *(int(random.integers(side)) for side in grid.counts(level)))
        for level in levels
        for _ in range(count)
    ]


def time_cutting(path: Path, count: int) -> None:
    """Tiles as pixels: the JPEG costs both the same."""
    with open_slide(path) as slide:
        zoom = DeepZoom(slide, ZoomGrid(slide.size_level0))
        theirs = DeepZoomGenerator(openslide.OpenSlide(path), 510, 1)
        wanted = addresses(zoom.grid, count)
        ways = {
            "ours": lambda level, x, y: zoom.tile(level, x, y),
            "OpenSlide's": lambda level, x, y: np.asarray(theirs.get_tile(level, (x, y))),
        }
        differ = [np.abs(np.subtract(*(way(*a) for way in ways.values()), dtype=int)).mean()
                  for a in wanted[::10]]  # fmt: skip
        for name, way in ways.items():
            started = time.perf_counter()
            for address in wanted:
                way(*address)
            print(f"cut, {name}: {len(wanted) / (time.perf_counter() - started):.0f} tiles/s")
        print(f"they differ by {np.mean(differ):.2g} gray levels on average")


def time_serving(path: Path, out: Path, count: int) -> None:
    """Tiles as JPEG through HTTP, one after the other and by six threads as browsers do."""
    site = Site(make_folder(path, out), SlideFiles([path.parent]), ViewSpec())
    with ViewServer(site, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"{server.url}large/viewer/"
        started = time.perf_counter()
        first = ["index.html", "heat.png", "tiles/9/0_0.jpg"]
        for name in (*first, *(f"tiles/10/{x}_{y}.jpg" for x in (0, 1) for y in (0, 1))):
            urlopen(base + name).read()
        print(f"page, heat map and first tiles: {time.perf_counter() - started:.2f} s")
        with open_slide(path) as slide:
            wanted = addresses(ZoomGrid(slide.size_level0), count)
        names = [f"{base}tiles/{level}/{x}_{y}.jpg" for level, x, y in wanted]
        for threads in (1, 6):
            print(f"served to {threads}: {len(names) / ask_all(names, threads):.0f} tiles/s")
        server.shutdown()
    site.close()


def ask_all(names: list[str], threads: int) -> float:
    started = time.perf_counter()
    parts = [names[i::threads] for i in range(threads)]
    workers = [
        threading.Thread(target=lambda part=part: [io.BytesIO(urlopen(n).read()) for n in part])
        for part in parts
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - started


def make_folder(path: Path, out: Path) -> ScreenedFolder:
    """What `view` needs of a screening, with scores drawn at random."""
    with open_slide(path) as slide:
        size, mpp, fingerprint = slide.size_level0, slide.mpp, slide.fingerprint
    edge = 64 / mpp
    xy = np.argwhere(np.ones((int(size[1] // edge), int(size[0] // edge)))) * round(edge)
    score = np.random.default_rng(0).random(len(xy))
    (out / "large").mkdir(parents=True)
    write_heatmap(out / "large" / "heatmap.tif", score, xy_level0=xy, edge_level0=edge,
                  slide_size=size, slide_mpp=mpp)  # fmt: skip
    lines = ["x_level0,y_level0,score,percentile,reconstruction,norm"]
    lines += [f"{x},{y},{s:.6g},50,1,1" for (x, y), s in zip(xy, score, strict=True)]
    (out / "large" / "scores.csv").write_text("\n".join(lines), encoding="utf-8")
    facts = SlideFacts.model_validate(
        {
            "case_id": "large",
            **dict.fromkeys(("slide_score", "slide_percentile", "maximum", "threshold"), 1.0),
            "area_above_threshold_mm2": 1.0,
            "tiles": len(xy),
            "unreadable_tiles": 0,
            "slide_rule": "",
            "threshold_rule": "",
            "geometry": {"size_level0": size, "mpp": mpp, "edge_level0": edge},
            "heatmap_limits": (0.0, 1.0),
            "provenance": {"Slide file": path.name, "Slide fingerprint": fingerprint},
        }
    )
    return ScreenedFolder(out.resolve(), {"large": facts})


if __name__ == "__main__":
    main()
