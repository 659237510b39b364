import pytest

from esad_med.base.errors import ConfigError
from esad_med.base.plain import is_plain


def test_fast_paths_are_on_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESAD_PLAIN", raising=False)
    assert not is_plain("reader")
    monkeypatch.setenv("ESAD_PLAIN", "reader, kernels")
    assert is_plain("reader")
    assert is_plain("kernels")
    assert not is_plain("graphs")
    monkeypatch.setenv("ESAD_PLAIN", "all")
    assert is_plain("graphs")


def test_an_unknown_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESAD_PLAIN", "readers")
    with pytest.raises(ConfigError, match="'readers' is unknown; expected all, or some of reader"):
        is_plain("reader")
