"""Who may import whom, as docs/architecture.md draws it; held over `ast`."""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("esad_med", "data_prep", "pipelines")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
BELOW = (
    *("esad_med.base", "esad_med.method", "esad_med.baselines", "esad_med.assess"),
    *("esad_med.outputs", "data_prep"),
)
# package -> what of ours its modules may import, at the top or inside functions
ALLOWED = {
    "esad_med.base": ("esad_med.base",),
    "esad_med.method": ("esad_med.base", "esad_med.method"),
    "esad_med.baselines": ("esad_med.base", "esad_med.method", "esad_med.baselines"),
    "esad_med.assess": ("esad_med.base", "esad_med.assess"),
    "esad_med.outputs": ("esad_med.base", "esad_med.outputs"),
    "data_prep": ("esad_med.base", "data_prep"),
    "pipelines": (*BELOW, "pipelines"),
    "esad_med.cli": ("esad_med", *PACKAGES),
}
# package -> what it may import at the top of a module, the standard library aside
TOP = {
    "esad_med.base": {"numpy", "pandas", "pydantic", "yaml", "esad_med.base"},
    "esad_med.cli": {"typer", "rich", "esad_med.cli"}
    | {"esad_med.base.errors", "esad_med.base.interrupts", "esad_med.base.texts"},
}
# What may load a file: these can run no program that stands in it, the last two as they are called
LOADERS = {
    "ForkingPickler.loads": "packed",  # what a command sends to a process of its own, by a pipe
    **dict.fromkeys(("json.loads", "picture.load", "Detector.load", "self.average.load"), ""),
    "np.load": "allow_pickle=False",
    "torch.load": "weights_only=True",
    # it can run one: only what this process wrote a moment before, or what a user says is trusted
    "torch.export.load": ("written", "trusted"),
    "yaml.load": "_Loader",  # a SafeLoader
}
PROGRAMS = {"eval", "exec", "__import__", "pickle", "dill", "cloudpickle", "joblib", "shelve"}
PROGRAMS |= {"marshal", "read_pickle", "UnsafeLoader", "FullLoader", "unsafe_load", "ConfigParser"}
HEAVY = ("torch", "monai", "ignite")  # never at the top of these packages
LIGHT_PACKAGES = ("data_prep", "esad_med.assess", "esad_med.outputs", "esad_med.base")


def imports_of(module: str, *, top_only: bool) -> Iterator[str]:
    """Dotted names that a module imports; a name of ours down to the module it comes from."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    inner = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if top_only and id(node) in inner:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else str(node.module)


def is_below(name: str, packages: tuple[str, ...] | set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_every_module_has_a_place() -> None:
    faces = ("esad_med", "esad_med.__main__")
    homeless = [m for m in FILES if m not in faces and not is_below(m, tuple(ALLOWED))]
    assert homeless == []
    assert sorted(FILES["esad_med"].parent.glob("*.py")) == [FILES[m] for m in faces]


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_know_only_what_stands_below_them(package: str) -> None:
    modules = [m for m in FILES if is_below(m, (package,))]
    assert modules
    found = [(m, name) for m in modules for name in imports_of(m, top_only=False)]
    ours = [(m, name) for m, name in found if is_below(name, PACKAGES)]
    wrong = [(m, name) for m, name in ours if not is_below(name, ALLOWED[package])]
    assert [(m, name) for m, name in wrong if not is_of_an_export(m, name)] == []


def is_of_an_export(module: str, name: str) -> bool:
    """Exports alone, of all outputs, take a Detector."""
    return module.startswith("esad_med.outputs.export") and is_below(name, ("esad_med.method",))


@pytest.mark.parametrize("package", TOP)
def test_light_modules_import_little_at_the_top(package: str) -> None:
    for module in (m for m in FILES if is_below(m, (package,))):
        for name in imports_of(module, top_only=True):
            standard = name.split(".")[0] in sys.stdlib_module_names
            assert standard or is_below(name, TOP[package]), f"{module} imports {name} at its top"


@pytest.mark.parametrize("package", LIGHT_PACKAGES)
def test_torch_and_monai_are_not_imported_at_the_top(package: str) -> None:
    for module in (m for m in FILES if is_below(m, (package,))):
        heavy = [name for name in imports_of(module, top_only=True) if is_below(name, HEAVY)]
        assert heavy == [], module


def test_there_are_no_circles() -> None:
    graph = {
        m: {name for name in imports_of(m, top_only=True) if name in FILES and name != m}
        for m in FILES
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


def unsafe_loads(tree: ast.AST) -> Iterator[str]:
    """What in a module could run a program that stands in a file it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            if ast.unparse(node) != "from pickle import UnpicklingError":
                yield from PROGRAMS.intersection(".".join(names).split("."))
        elif isinstance(node, ast.Name) and node.id in PROGRAMS:
            yield node.id
        elif isinstance(node, ast.Attribute) and node.attr in PROGRAMS - {"eval"}:
            yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called, text = ast.unparse(node.func), ast.unparse(node)
            known = LOADERS.get(called)
            wanted = (known,) if isinstance(known, str) else known or ()
            if node.func.attr in {"load", "loads"} and not any(word in text for word in wanted):
                yield text


def test_no_module_reads_what_could_run() -> None:
    found = {}
    for module, path in FILES.items():
        if unsafe := list(unsafe_loads(ast.parse(path.read_text(encoding="utf-8")))):
            found[module] = unsafe
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "import joblib",
        "from pickle import loads",
        "import pickle\npickle.load(file)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "pd.read_pickle(path)",
        "dill.loads(data)",
        "eval(text)",
        "from monai.bundle import ConfigParser",
    ],
)
def test_what_could_run_is_seen(text: str) -> None:
    assert list(unsafe_loads(ast.parse(text)))


def test_tables_are_written_in_three_places() -> None:
    """Each of them sees to it that no cell is a formula."""
    writers = re.compile(r"csv\.(writer|DictWriter)\(|\.to_csv\(")
    found = {m for m, path in FILES.items() if writers.search(path.read_text(encoding="utf-8"))}
    assert found == {"esad_med.base.runs", "esad_med.base.texts", "esad_med.base.identifiers"}


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_benchmarks_use_names_that_there_are(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PACKAGES:
            module = import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name) or f"{node.module}.{alias.name}" in FILES
