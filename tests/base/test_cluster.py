"""Which schedulers may be spoken to: Dask's wire carries pickles."""

from importlib.metadata import version

import pytest

from esad_med.base.errors import ConfigError
from esad_med.base.execution import Place, open_executor

pytest.importorskip("distributed")
from esad_med.base.cluster import _check_workers, check_address  # need what was just asked for


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:8786", "tcp://localhost:1", "tcp://[::1]:8786", "tls://far:8786"]
)
def test_tls_and_the_loopback_are_trusted(address: str) -> None:
    check_address(address, trusted=False)


@pytest.mark.parametrize("address", ["tcp://10.0.0.7:8786", "tcp://no-such-host.invalid:8786"])
def test_a_network_without_tls_is_refused_unless_forced(address: str) -> None:
    with pytest.raises(ConfigError, match=r"neither TLS nor to this machine.*--trust-scheduler"):
        check_address(address, trusted=False)
    check_address(address, trusted=True)


@pytest.mark.parametrize(
    "address",
    ["", "far:8786", "http://127.0.0.1:8786", "tcp://127.0.0.1", "tcp://h:port", "tls://"],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="no address, expected such as"):
        check_address(address, trusted=True)


def test_a_scheduler_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esad_med.base.cluster._CONNECT_SECONDS", 1)
    place = Place(scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ConfigError, match="no connection"), open_executor(place):
        pass


@pytest.mark.parametrize("text", ["GPU", "GPU=", "GPU=one", "=1x"])
def test_a_resource_is_a_name_and_a_number(text: str) -> None:
    with pytest.raises(ConfigError, match="expected NAME=NUMBER, such as GPU=1"):
        Place.of(1, "tls://far:8786", [text], False)
    assert Place.of(1, "tls://far:8786", ["GPU=1"], False).resources == {"GPU": 1.0}


class Workers:
    """A client of workers with these resources."""

    def __init__(self, *resources: dict[str, float]) -> None:
        self.resources = resources

    def run(self, *_: object, on_error: str) -> dict[str, tuple[str, bool]]:
        return {f"w{n}": (version("esad-med"), True) for n, _ in enumerate(self.resources)}

    def scheduler_info(self) -> dict[str, object]:
        return {"workers": {f"w{n}": {"resources": r} for n, r in enumerate(self.resources)}}


def test_a_resource_that_no_worker_has_is_not_waited_for(caplog) -> None:
    place = Place.of(1, "tls://far:8786", ["GPU=1"], False)
    _check_workers(Workers({}, {"GPU": 2.0}), None, place)
    for workers in (Workers({}), Workers({"GPU": 0.5, "TPU": 1.0})):
        with pytest.raises(ConfigError, match="--resource GPU=1: no worker has it"):
            _check_workers(workers, None, place)
    assert caplog.text == ""
    _check_workers(Workers(), None, place)
    assert "has no worker yet, waiting for one" in caplog.text


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_of_this_machine_have_no_resources_to_wait_for(workers: int) -> None:
    with pytest.raises(ConfigError, match="--resource: is for the workers of a cluster"):
        Place.of(workers, "", ["GPU=1"], False)
