r"""What `esad-med screen` writes for other programs: seconds, MB and memory, and a look at it.

    python -m benchmarks.bench_exports [--tiles 100000] [--share 0.05]
    python -m benchmarks.bench_exports --overlay out/CASE/lesions.geojson slide.svs overlay.png

Composed scores of a square slide of tissue, lesions as discs. Every figure is the processor time of
one core in a process of its own without its start (other programs do not lengthen it), and what it
added to the peak memory. The picture lays a GeoJSON over its slide by json, shapely and Pillow
alone, and says how much of the lesions' area lies in tiles above the threshold, and the reverse.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.processes import in_own_process

WAYS = ("geojson, all tiles", "geojson, above", "asap", "parquet", "csv")
EDGE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiles", type=int, default=100_000)
    parser.add_argument("--share", type=float, default=0.05, help="of tiles above the threshold")
    parser.add_argument("--overlay", nargs=3, metavar=("GEOJSON", "SLIDE", "PNG"))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.overlay:
        draw_overlay(*map(Path, options.overlay))
    elif options.step:
        print(json.dumps(take_step(options.step, options.tiles, options.share)))
    else:
        print(f"{options.tiles} tiles\n\n| format | s | MB | memory, MiB |\n|---|---|---|---|")
        for way in WAYS:
            arguments = ("--step", way, "--tiles", options.tiles, "--share", options.share)
            done = in_own_process("benchmarks.bench_exports", *arguments, plain="")
            print(f"| {way} | {done['seconds']:.2f} | {done['mb']:.1f} | {done['mib']:.0f} |")


def take_step(way: str, count: int, share: float) -> dict[str, float]:
    """Find the lesions and write one file, as `screen` does."""
    import pandas as pd

    from data_prep.slide_writing import write_asap
    from esad_med.base.parquet import write_parquet
    from esad_med.base.runs import write_csv
    from esad_med.outputs.geojson import write_geojson
    from esad_med.outputs.lesions import SlideTiles, asap_polygons, find_lesions

    side = int(np.ceil(count**0.5))
    row, column = (axis.ravel()[:count] for axis in np.indices((side, side)))
    random = np.random.default_rng(0)
    score = random.normal(size=count).astype(np.float32)
    for x, y in random.uniform(0, side, (20, 2)):
        score[np.hypot(column - x, row - y) < side * (share / 20 / np.pi) ** 0.5] += 6
    names = ("score", "percentile", "reconstruction", "norm")
    tiles = SlideTiles(
        xy_level0=np.stack([column, row], axis=1) * EDGE,
        edge_level0=float(EDGE),
        measurements=dict.fromkeys(names, score),
        threshold=2.5,
        fingerprint="0" * 64,
        slide_size=(side * EDGE, side * EDGE),
        mpp=0.25,
        about={},
    )

    def table(rows: int = count) -> pd.DataFrame:
        ids = [f"case_{i}" for i in range(rows)]
        return pd.DataFrame({"sample_id": ids, **dict.fromkeys(names, score[:rows])})

    steps: dict[str, Callable[[Path], None]] = {
        "geojson, all tiles": lambda path: write_geojson(
            path, tiles, find_lesions(tiles), all_tiles=True
        ),
        "geojson, above": lambda path: write_geojson(
            path, tiles, find_lesions(tiles), all_tiles=False
        ),
        "asap": lambda path: write_asap(path, asap_polygons(find_lesions(tiles))),
        "parquet": lambda path: write_parquet(path, table(), {}),
        "csv": lambda path: write_csv(path, list(table(1)), table().itertuples(index=False)),
    }
    with tempfile.TemporaryDirectory() as folder:
        write_parquet(Path(folder) / "warm", table(1), {})
        before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        steps[way](Path(folder) / "file")
        seconds = time.process_time() - begin
        size = (Path(folder) / "file").stat().st_size
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "mb": size / 1e6, "mib": (after - before) / 1024}


def draw_overlay(geojson: Path, slide_path: Path, out: Path) -> None:
    """Lesions as outlines and tiles as fields over the slide; print how well they agree."""
    import openslide
    import shapely
    from PIL import Image, ImageDraw
    from shapely.geometry import shape

    features = json.loads(geojson.read_text(encoding="utf-8"))["features"]
    slide = openslide.OpenSlide(str(slide_path))
    picture = slide.get_thumbnail((1400, 1400)).convert("RGBA")
    scale = picture.width / slide.dimensions[0]
    layer = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(layer)
    kinds = {"tile": [], "annotation": []}
    for item in features:
        properties, polygon = item["properties"], shape(item["geometry"])
        kinds[properties["objectType"]].append((polygon, properties))
    above = [p for p, found in kinds["tile"] if found["classification"]["name"] == "Anomaly"]
    for polygon, found in kinds["tile"]:
        color = (*found["classification"]["color"], 90)
        draw.polygon([(x * scale, y * scale) for x, y in polygon.exterior.coords], fill=color)
    for polygon, _ in kinds["annotation"]:
        for ring in (polygon.exterior, *polygon.interiors):
            draw.line([(x * scale, y * scale) for x, y in ring.coords], fill="black", width=3)
    Image.alpha_composite(picture, layer).convert("RGB").save(out)
    lesions, tiles = (
        shapely.union_all(shapes) for shapes in ([p for p, _ in kinds["annotation"]], above)
    )
    print(
        f"{len(kinds['annotation'])} lesions, {len(above)} tiles above the threshold;"
        f" {lesions.intersection(tiles).area / max(lesions.area, 1):.4%} of the lesions' area lies"
        f" in them, {lesions.intersection(tiles).area / max(tiles.area, 1):.4%} of theirs in"
        " lesions"
    )


if __name__ == "__main__":
    main()
