"""The slide files behind a screening: found by name, told apart by fingerprint, cut into tiles."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.deep_zoom import DeepZoom
from data_prep.slide_header import fingerprint_file
from data_prep.slides import open_slide
from esad_med.base.errors import ConfigError, SlideError
from esad_med.base.interrupts import raise_if_interrupted
from pipelines.viewing import SlideFacts, ViewSpec, zoom_grid


class SlideFiles:
    """Where the slides of a screening lie.

    A result names its slide by file name and fingerprint, not by folder, which may hold a patient's
    name. So whoever wants to see the slide says where it is.

    Args:
        places: slide files, and folders that are searched through.

    Raises:
        ConfigError: a place that does not exist.
    """

    def __init__(self, places: Sequence[Path]) -> None:
        self._found: dict[str, list[Path]] = {}
        for place in places:
            if not place.exists():
                raise ConfigError(f"--slides {place}: no such file or folder")
            for path in _files(place):
                self._found.setdefault(path.name, []).append(path)

    def find(self, facts: SlideFacts) -> Path:
        """The file of a screened slide.

        Raises:
            SlideError: no file of its name, or only another slide.
        """
        name = facts.provenance.get("Slide file", "")
        expected = facts.provenance.get("Slide fingerprint", "")
        others = []
        for path in self._found.get(name, ()):
            try:
                found = fingerprint_file(path)
            except OSError as error:
                raise SlideError(f"{name}: cannot be read ({error.strerror})") from error
            if found == expected:
                return path
            others.append(found)
        if others:
            raise SlideError(
                f"{name}: is another slide than the one that was screened (fingerprint"
                f" {others[0][:12]}, expected {expected[:12]}); name its folder with --slides, or"
                " run `screen` on this one"
            )
        raise SlideError(
            f"{name or facts.case_id}: the slide's file was not found; name the folder that holds"
            " it with --slides"
        )

    def open(self, facts: SlideFacts, spec: ViewSpec) -> DeepZoom:
        """The deep-zoom tiles of a screened slide; its ``slide`` is to be closed.

        Raises:
            SlideError: not found, another slide, damaged, or beyond the limits.
        """
        path = self.find(facts)
        slide = open_slide(path, mpp=facts.geometry.mpp, limits=spec.limits)
        if slide.size_level0 != facts.geometry.size_level0:
            slide.close()
            raise SlideError(
                f"{path.name}: has {slide.size_level0} pixels, expected"
                f" {facts.geometry.size_level0} as screened; run `screen` on it again"
            )
        return DeepZoom(slide, zoom_grid(facts, spec))


def _files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    for folder, _, names in os.walk(place):
        raise_if_interrupted()
        yield from (Path(folder, name) for name in names)
