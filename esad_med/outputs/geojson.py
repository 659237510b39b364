"""QuPath's GeoJSON of a screened slide: its tiles as tile objects, its lesions as annotations."""

import json
import uuid
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from esad_med.base.runs import atomic_file
from esad_med.outputs.lesions import Lesion, SlideTiles

#: The member beside ``features`` that says which slide these are of (RFC 7946, section 6.1).
ABOUT = "esad_med"
ABOVE = {"name": "Anomaly", "color": [213, 94, 0]}
BELOW = {"name": "Below threshold", "color": [86, 180, 233]}
_CHUNK = 4096  # features written at a time


def write_geojson(
    path: Path, tiles: SlideTiles, lesions: Sequence[Lesion], *, all_tiles: bool
) -> None:
    """Write a FeatureCollection in level-0 pixels, a feature per line, as it is made.

    Equal slides and scores give equal bytes: identifiers come from the slide's fingerprint and the
    place.

    Args:
        path: the file.
        tiles: of the slide.
        lesions: of `find_lesions`.
        all_tiles: those below the threshold, too.

    Raises:
        ConfigError: the file cannot be written.
    """
    space = uuid.uuid5(uuid.NAMESPACE_OID, f"esad-med {tiles.fingerprint}")
    about = _dump({**_slide_of(tiles), **tiles.about})
    lines = _lines(tiles, lesions, space, all_tiles)
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f'{{"type":"FeatureCollection","{ABOUT}":{about},"features":[')
        before = "\n"
        while chunk := list(islice(lines, _CHUNK)):
            file.write(before + ",\n".join(chunk))
            before = ",\n"
        file.write("\n]}\n")


def _slide_of(tiles: SlideTiles) -> dict[str, object]:
    width, height = tiles.slide_size
    slide = {"fingerprint": tiles.fingerprint, "width": width, "height": height, "mpp": tiles.mpp}
    return {"format": 1, "slide": slide, "threshold": round(tiles.threshold, 6)}


def _lines(
    tiles: SlideTiles, lesions: Sequence[Lesion], space: uuid.UUID, all_tiles: bool
) -> Iterator[str]:
    for number, lesion in enumerate(lesions, 1):
        yield _lesion(lesion, number, space)
    above = tiles.above
    chosen = np.arange(len(above)) if all_tiles else np.flatnonzero(above)
    names = [_dump(name) for name in tiles.measurements]
    kinds = [_dump(BELOW), _dump(ABOVE)]
    edge = tiles.drawn_edge
    for start in range(0, len(chosen), _CHUNK):
        part = chosen[start : start + _CHUNK]
        columns = [tiles.measurements[name][part].tolist() for name in tiles.measurements]
        places = tiles.xy_level0[part].tolist()
        for (x, y), kind, *values in zip(places, above[part].tolist(), *columns, strict=True):
            right, lower = x + edge, y + edge
            measured = ",".join(f"{n}:{v:.6g}" for n, v in zip(names, values, strict=True))
            yield (
                f'{{"type":"Feature","id":"{uuid.uuid5(space, f"tile {x} {y}")}","geometry":'
                f'{{"type":"Polygon","coordinates":[[[{x},{y}],[{right},{y}],[{right},{lower}],'
                f'[{x},{lower}],[{x},{y}]]]}},"properties":{{"objectType":"tile",'
                f'"classification":{kinds[kind]},"measurements":{{{measured}}}}}}}'
            )


def _lesion(lesion: Lesion, number: int, space: uuid.UUID) -> str:
    rings = [[[_plain(x), _plain(y)] for x, y in ring] for ring in lesion.rings]
    measurements = {
        "area mm2": float(f"{lesion.area_mm2:.6g}"),
        "maximum score": float(f"{lesion.maximum:.6g}"),
        "mean score": float(f"{lesion.mean:.6g}"),
        "tiles": lesion.tiles,
    }
    return _dump(
        {
            "type": "Feature",
            "id": str(uuid.uuid5(space, f"lesion {rings[0]}")),
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {
                "objectType": "annotation",
                "name": f"Lesion {number}",
                "classification": ABOVE,
                "measurements": measurements,
            },
        }
    )


def _plain(value: float) -> float | int:
    """Whole pixels without a point."""
    return int(value) if value == int(value) else value


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
