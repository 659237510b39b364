"""Settings: YAML and overrides become checked, frozen Specs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from esad_med.base.config import Spec, dump_yaml, load_config
from esad_med.base.errors import ConfigError


class Tiles(Spec):
    size: int = Field(64, gt=0)
    mpp: float = Field(1.0, gt=0)


class Whole(Spec):
    tiles: Tiles = Tiles()
    name: str = "a"


@given(st.integers(1, 10_000), st.floats(1e-3, 1e3), st.text(max_size=20))
def test_config_to_yaml_and_back_is_equal(tmp_path_factory, size, mpp, name):
    config = Whole(tiles=Tiles(size=size, mpp=mpp), name=name)
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(Whole, path) == config


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("tiles: {size: 32, mpp: 0.5}\n")
    config = load_config(Whole, path, ["tiles.size=16"])
    assert config.tiles == Tiles(size=16, mpp=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tiles: {sise: 3}", "tiles.sise: unknown key; did you mean 'size'"),
        ("tiles: {size: -1}", "tiles.size: .*greater than 0.*-1"),
        ("tiles: {size: big}", "tiles.size"),
        ("- 1", "expected a mapping"),
        ("a: [", "not a YAML file"),
        ("tiles: {mpp: .nan}", "tiles.mpp"),
        ("tiles:\n  size: 3\n  size: 4\n", "line 3: key 'size' stands there twice"),
        ("tiles:\n\tsize: 3\n", "line 2: .*indent with spaces"),
    ],
)
def test_bad_settings_name_the_key_and_the_remedy(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(Whole, path)


def test_an_override_is_not_blamed_on_the_file_alone(tmp_path):
    (tmp_path / "c.yaml").write_text("name: b")
    with pytest.raises(ConfigError, match=r"c\.yaml and settings: tiles\.sise: unknown key"):
        load_config(Whole, tmp_path / "c.yaml", ["tiles.sise=3"])


def test_a_missing_setting_says_what_it_is():
    class Needed(Spec):
        edge: int = Field(description="Pixels.")

    with pytest.raises(ConfigError, match=r"edge \(Pixels\.\): is missing"):
        load_config(Needed)


@pytest.mark.parametrize("override", ["tiles.size", "=3", "name.deep=1", "tiles.size=[", "x=1"])
def test_bad_overrides_are_refused(override):
    with pytest.raises(ConfigError):
        load_config(Whole, None, ["name=b", override])


def test_a_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Whole, tmp_path / "none.yaml")


def test_specs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Tiles().size = 3
