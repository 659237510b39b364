"""A screened folder without a trained detector: composed slides, drawn scores, the real writers."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_prep.slides import open_slide
from data_prep.tiles import TileSpec, plan_tiles
from data_prep.tissue import TissueSpec, find_tissue
from esad_med.base.cases import Case
from esad_med.base.errors import ConfigError
from esad_med.base.runs import Failure, read_json, write_json
from esad_med.method.scores import Scores
from esad_med.outputs.openseadragon import read_openseadragon
from pipelines.screening_tables import Earlier, write_tables
from pipelines.slide_results import SlideScores, write_slide_results
from pipelines.viewing import write_index

NORMALS = {50.0: 1.0, 95.0: 2.0, 99.0: 3.0}
DETECTOR = SimpleNamespace(
    threshold_at=NORMALS.__getitem__,
    digest="d" * 64,
    input=SimpleNamespace(stain="none", encoder=None),
    contract=SimpleNamespace(decisions=None),
)
SET_ASIDE = Failure("lost", "screen", "SlideError", "lost.tif: the file is empty (0 bytes)")


def draw_scores(case: Case, slide, seed: int) -> SlideScores:
    """Scores that rise toward one tile, so that the heat map has a hill."""
    tissue = find_tissue(slide, TissueSpec())
    grid = plan_tiles(slide, tissue, TileSpec())
    random = np.random.default_rng(seed)
    away = np.hypot(*(grid.xy_level0 - grid.xy_level0[len(grid) // 2]).T) / grid.edge_level0
    score = (8 * np.exp(-((away / 3) ** 2)) + random.random(len(grid))).astype(np.float32)
    return SlideScores(
        case=case,
        grid=grid,
        scores=Scores(score, score / 2, score / 4),
        percentiles=np.minimum(100, 20 * score),
        threshold=NORMALS[99.0],
        slide_percentile=99.9,
        truth=None,
        tissue=tissue,
        precision="float32",
        unreadable=[],
    )


@pytest.fixture(scope="session")
def screening(composed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a screening of two slides; a third was set aside. Copy it to change it."""
    out = tmp_path_factory.mktemp("screening") / "out"
    cases = [Case(n, composed / f"{n}.tif", patient_id="DOE^JANE") for n in ("tumor_1", "normal_1")]
    for seed, case in enumerate(cases):
        with open_slide(case.path) as slide:
            result = draw_scores(case, slide, seed)
            write_slide_results(out / case.case_id, result, slide, DETECTOR, exports=lambda _: [])
    found = [read_json(out / case.case_id / "slide.json", ConfigError) for case in cases]
    write_tables(out, found, [SET_ASIDE], cases=cases, earlier=Earlier())
    write_json(out / "run.json", {"detector": DETECTOR.digest, "began": "2026-01-02T03:04:05"})
    write_index(out)
    return out


@pytest.fixture(scope="session")
def openseadragon() -> None:
    """Skips where the viewer's library is not installed."""
    try:
        read_openseadragon()
    except ConfigError as error:
        pytest.skip(str(error))
