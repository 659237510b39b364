"""The documentation is true: commands parse, settings exist, links lead somewhere, blocks run."""

import os
import pkgutil
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import esad_med.cli
from esad_med.base.cases import MANIFEST_COLUMNS, read_manifest
from esad_med.base.config import Spec, load_config
from esad_med.base.limits import Limits
from esad_med.base.store import REQUIRED_COLUMNS
from esad_med.cli.app import app
from esad_med.method.config import PRESETS, TrainConfig
from pipelines.auditing import AuditConfig
from pipelines.calibration_levels import CalibrationConfig
from pipelines.camelyon16_scoring import Camelyon16Config
from pipelines.cells import CellConfig
from pipelines.dicom_settings import NodeConfig
from pipelines.features import FeatureConfig
from pipelines.importing import ImportConfig
from pipelines.paper.settings import BenchmarkConfig
from pipelines.pathology import PathologyConfig
from pipelines.slide_exports import ScreeningConfig
from pipelines.triage_intake import TriageConfig
from pipelines.viewing import ViewSpec
from pipelines.xray_store import XrayStoreConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
}
CONFIGS = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.yaml")}
SPECS: dict[str, type[Spec]] = {
    "tile": PathologyConfig,
    "screen": ScreeningConfig,
    "import": ImportConfig,
    "train": TrainConfig,
    "calibrate": CalibrationConfig,
    "xray": XrayStoreConfig,
    "triage": TriageConfig,
    "serve": NodeConfig,
    "audit": AuditConfig,
    "benchmark": BenchmarkConfig,
    "camelyon16": Camelyon16Config,
    "view": ViewSpec,
}
for _module in pkgutil.iter_modules(esad_med.cli.__path__):
    import_module(f"esad_med.cli.{_module.name}")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined] # it is a group


def command_lines() -> list[tuple[str, str]]:
    """(page, command) of every line of a code block that runs `esad-med`, by `torchrun` too."""
    before = r"(?:\.venv/bin/|.*torchrun .* -m (?=esad_med))?"
    pattern = re.compile(rf"^ {{4,}}(?:\$ )?{before}(esad[-_]med [a-z].*)$", re.MULTILINE)
    return [
        (page, line)
        for page, text in PAGES.items()
        for line in pattern.findall(indent_fences(text).replace("\\\n", " "))
    ]


def indent_fences(text: str) -> str:
    """Fenced shell blocks as indented ones."""
    fence = re.compile(r"^```(?:sh|bash|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return fence.sub(lambda block: textwrap.indent(block[1], " " * 4), text)


def inline_commands() -> list[tuple[str, str]]:
    """(page, command) of every `esad-med ...` in running text; placeholders may stand in it."""
    return [
        (page, " ".join(line.split()))
        for page, text in PAGES.items()
        for line in re.findall(r"`(esad-med [a-z][^`]*)`", text)
    ]


def spec_of(command: str, arguments: list[str]) -> type[Spec] | None:
    if "--features" in arguments:
        return FeatureConfig
    return CellConfig if "dpa" in arguments else SPECS.get(command)


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_commands_parse_and_their_settings_exist(page: str, line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    context = COMMANDS[name].make_context(name, list(arguments))  # raises UsageError
    settings, config = context.params.get("settings"), context.params.get("config")
    assert config is None or config.as_posix() in CONFIGS
    if kind := spec_of(name, arguments):
        required = {"import": "mpp", "benchmark": "suite"}.get(name)
        given = context.params[required] if required else None
        needed = [f"{required}={given}"] if given is not None else []
        load_config(kind, ROOT / config if config else None, [*needed, *(settings or [])])
    else:
        assert not settings


@pytest.mark.parametrize(("page", "line"), inline_commands())
def test_commands_in_running_text_exist(page: str, line: str) -> None:
    _, name, *arguments = line.split()
    known = {option for item in COMMANDS[name].params for option in item.opts}
    assert {word for word in arguments if word.startswith("--")} <= known


def test_the_docs_hold_commands() -> None:
    assert len(command_lines()) >= 15
    assert len(inline_commands()) >= 5


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    shown = {shlex.split(line)[1] for page, line in command_lines() if page == "README.md"}
    assert name in shown


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_and_links_exist(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^ {4}|`)make ([a-z]+)", PAGES[page], re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: link to {link}"
        assert not anchor or anchor in anchors(file), f"{page}: no heading for {link}"


def anchors(file: Path) -> set[str]:
    """The headings' anchors, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_configs_load_and_state_only_differences(name: str) -> None:
    path = ROOT / name
    kind: type[Spec] = PathologyConfig if path.name == "pathology.yaml" else TrainConfig
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    start = [f"preset={given['preset']}"] if "preset" in given else []
    if suite := {"natural-cpu.yaml": "mnist", "medical-cpu.yaml": "nih"}.get(path.name):
        kind, start = BenchmarkConfig, [f"suite={suite}"]
    defaults = dict(leaves(load_config(kind, None, start).model_dump(mode="json")))
    chosen = dict(leaves(load_config(kind, path, start).model_dump(mode="json")))
    for key, value in leaves(given):
        assert chosen[key] == value
        assert key == "preset" or defaults[key] != value, f"{key} is the default already"


def leaves(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{before}{key}.")
        else:
            yield before + key, value


@pytest.mark.parametrize(
    ("kind", "heading"),
    [("image", "pictures"), ("upright", "upright pictures"), ("vector", "vectors")],
)
def test_the_preset_tables_are_what_the_presets_say(kind: str, heading: str) -> None:
    row = re.compile(r"^\| `([a-z_0-9.]+)` \| ([^|]+) \| ([^|]+) \|", re.MULTILINE)
    section = PAGES["docs/method.md"].split(f"### Presets for {heading}\n")[1].split("\n## ")[0]
    table = {key: (a, b) for key, a, b in row.findall(section.split("\n### ")[0])}
    names = ("paper", "recommended")
    assert set(names) == set(PRESETS)
    paper, recommended = (
        dict(leaves(TrainConfig.model_validate({"preset": name, "kind": kind}).model_dump()))
        for name in names
    )
    for key, printed in table.items():
        found = tuple(yaml.safe_load(value) for value in printed)
        assert found == (paper[key], recommended[key]), f"docs/method.md, {key}"
    differing = {key for key in paper if paper[key] != recommended[key]} - {"preset"}
    assert differing <= set(table), "docs/method.md lists every setting in which presets differ"


@pytest.mark.parametrize("column", [*MANIFEST_COLUMNS, *REQUIRED_COLUMNS])
def test_columns_are_explained(column: str) -> None:
    assert f"`{column}`" in PAGES["docs/data.md"]


def test_every_module_is_in_the_house() -> None:
    packages = (ROOT / name for name in ("esad_med", "data_prep", "pipelines"))
    modules = {path.name for package in packages for path in package.rglob("*.py")}
    drawn = set(re.findall(r"`(\w+\.py)`", PAGES["docs/architecture.md"]))
    assert modules - drawn == {"__init__.py"}


def python_blocks() -> list[tuple[str, str]]:
    fence = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page, block) for page, text in PAGES.items() for block in fence.findall(text)]


@pytest.mark.parametrize(("page", "block"), python_blocks())
def test_python_blocks_run(
    page: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_camelyon(tmp_path / "CAMELYON16")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page, "exec"), {"__name__": "block"})
    if (tmp_path / "CAMELYON16" / "manifest.csv").exists():
        check_manifest(tmp_path / "CAMELYON16" / "manifest.csv")


def lay_camelyon(root: Path) -> None:
    """Camelyon16's published folders with empty files."""
    for name in (
        "training/normal/normal_001.tif",
        "training/tumor/tumor_001.tif",
        "training/lesion_annotations/tumor_001.xml",
        "testing/images/test_001.tif",
        "testing/images/test_003.tif",
        "testing/lesion_annotations/test_001.xml",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    table = "test_001,Tumor,IDC,Macro\ntest_003,Normal,None,None\n"
    (root / "testing" / "reference.csv").write_text(table, encoding="utf-8")


def check_manifest(path: Path) -> None:
    cases = {case.case_id: case for case in read_manifest(path)}
    found = {
        name: (case.split, case.truth, case.annotation is not None) for name, case in cases.items()
    }
    assert found == {
        "normal_001": ("train", 0, False),
        "tumor_001": ("train", 1, True),
        "test_001": ("test", 1, True),
        "test_003": ("test", 0, False),
    }


def test_the_readme_block_is_a_manifest_that_reads(tmp_path: Path) -> None:
    lay_camelyon(tmp_path)
    text = "\n".join(
        line.strip()
        for line in PAGES["README.md"].splitlines()
        if line.startswith(("    path,case_id", "    training/", "    testing/"))
    )
    (tmp_path / "manifest.csv").write_text(text + os.linesep, encoding="utf-8")
    assert len(read_manifest(tmp_path / "manifest.csv")) == 3


def test_the_table_of_limits_is_theirs() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", PAGES["docs/data.md"], re.MULTILINE)
    told = {name: float(value) for name, value in rows if name in Limits.model_fields}
    assert told == Limits().model_dump()
