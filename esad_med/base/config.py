"""Specs: the parameters of one stage, checked when made; YAML files and ``key=value`` overrides."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from esad_med.base.errors import ConfigError

# Of a YAML file, before it can say anything itself: ours have 1 KiB and 100 nodes.
_MOST_BYTES = 1 << 18  # PyYAML takes a second for 100 KiB
_MOST_NODES = 100_000  # aliases counted as often as they stand for something
_MOST_DEPTH = 64


class Spec(BaseModel):
    """The frozen parameters of one stage. Unknown keys and impossible values are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Spec)


def load_config(
    kind: type[S],
    path: Path | None = None,
    overrides: Iterable[str] = (),
    *,
    start: S | None = None,
    source: str = "settings",
) -> S:
    """Build a config from its defaults, a YAML file, then ``a.b=value`` overrides, in this order.

    Args:
        kind: the Spec to build.
        path: a YAML mapping of differences from the defaults, or None.
        overrides: strings as given to ``--set``; the value is read as YAML (``tiles.mpp=0.5``).
        start: what to begin with instead of the defaults.
        source: what errors call the overrides.

    Raises:
        ConfigError: for a file that cannot be read, an unknown key, a wrong type or value.
    """
    values = start.model_dump(mode="json") if start else {}
    _merge(values, _read_yaml(path) if path else {})
    for override in overrides:
        _apply_override(values, override)
    given = [str(path)] * (path is not None) + [source] * bool(overrides or path is None)
    return build_spec(kind, values, source=" and ".join(given))


def build_spec(kind: type[S], values: object, *, source: str) -> S:
    """Check plain values into a Spec; errors name the key's path and the nearest known key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(_explain(kind, error))) from None


def dump_yaml(spec: Spec) -> str:
    """The whole resolved Spec as YAML; `load_config` of it gives an equal Spec."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ConfigError(f"{path}: larger than {_MOST_BYTES >> 10} KiB, expected settings")
        values = yaml.load(data.decode("utf-8-sig"), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: month 13
        raise ConfigError(f"{path}: not a YAML file ({_yaml_reason(error)})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {type(values).__name__}, expected a mapping of settings")
    return values


class _Loader(yaml.SafeLoader):
    """YAML's own takes the last of two equal keys without a word, and aliases of aliases."""

    def get_single_node(self) -> yaml.Node | None:
        """The document, if it stays small when its aliases are written out.

        Ten lines of aliases can stand for a billion values.
        """
        node = super().get_single_node()
        if node is not None and _nodes(node, {}, _MOST_DEPTH) > _MOST_NODES:
            problem = f"aliases that stand for more than {_MOST_NODES:,} values"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return node

    def fetch_flow_collection_start(self, kind: type[yaml.Token]) -> None:
        """Refuse deep brackets where they open: PyYAML looks at all open ones for every token."""
        if self.flow_level >= _MOST_DEPTH:
            problem = f"nested more than {_MOST_DEPTH} deep"
            raise yaml.scanner.ScannerError(None, None, problem, self.get_mark())
        super().fetch_flow_collection_start(kind)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys all differ."""
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{name}' stands there twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _nodes(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many nodes a node is, with its aliases written out."""
    if depth == 0:  # also an alias of a node that it stands in
        raise yaml.constructor.ConstructorError(
            None, None, f"nested more than {_MOST_DEPTH} deep", node.start_mark
        )
    if id(node) not in known:
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        pairs = inner if isinstance(node, yaml.MappingNode) else ((child,) for child in inner)
        known[id(node)] = 1 + sum(_nodes(n, known, depth - 1) for pair in pairs for n in pair)
    return known[id(node)]


def _yaml_reason(error: Exception) -> str:
    """What is wrong and in which line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return str(error).splitlines()[0]
    tab = "; indent with spaces" if "\\t" in problem else ""
    return f"line {mark.line + 1}: {problem}{tab}"


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(values.get(key), dict):
            _merge(values[key], change)
        else:
            values[key] = change


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as tiles.mpp=0.5")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--set {override}: the value is not YAML") from error
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: '{parent}' is a value, not a group of settings")
    values[last] = value


def _explain(kind: type[Spec], error: ValidationError) -> list[str]:
    messages = []
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"]) or "settings"
        if item["type"] == "extra_forbidden":
            known = _fields_at(kind, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            messages.append(f"{path}: unknown key; {hint}")
        elif item["type"] == "missing":
            field = kind.model_fields.get(path)
            what = f" ({field.description})" if field and field.description else ""
            messages.append(f"{path}{what}: is missing; give it, such as with --{path}")
        else:
            value = item.get("input")
            found = "" if isinstance(value, dict) else f" (found {repr(value)[:80]})"
            reason = item["msg"].removeprefix("Value error, ")
            messages.append(f"{path}: {reason}{found}" if item["loc"] else reason)
    return messages


def _fields_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        kind = annotation
    return list(kind.model_fields)
