"""`esad-med serve`: a DICOM node that triages what is sent to it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from esad_med.base.errors import ConfigError
from esad_med.cli.app import EXIT_INTERRUPTED, app, finish, say
from esad_med.cli.options import ConfigFile, EncoderFile, Json, Set


@app.command("serve")
def serve(
    spool: Annotated[Path, typer.Option(help="Folder for images and results on their way.")],
    detector: Annotated[
        list[Path] | None,
        typer.Option("--detector", help="Folder made by `train`; repeatable, one per view."),
    ] = None,
    ae_title: Annotated[str | None, typer.Option(help="The node's own AE title.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port to listen on.")] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", help="Calling AE title that may connect; repeatable."),
    ] = None,
    peer: Annotated[str | None, typer.Option(help="Where results are sent, AET@host:port.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Our certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="CA whose certificates callers must show, PEM.")
    ] = None,
    quiet_seconds: Annotated[
        float | None, typer.Option(help="A study is complete after so long without an image.")
    ] = None,
    watch: Annotated[
        Path | None, typer.Option(help="Take files from this folder instead of the network.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="TCP port for Prometheus, on loopback; 0 any free one.")
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Show how the spool stands, and end.")
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            max=1,
            help="1: studies are triaged beside the node, where a crash costs one; 0: within it.",
        ),
    ] = 1,
    encoder: EncoderFile = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    config: ConfigFile = None,
    settings: Set = None,
    triage_config: Annotated[
        Path | None, typer.Option(help="YAML file of differences for the triage.")
    ] = None,
    triage_settings: Annotated[
        list[str] | None,
        typer.Option("--triage-set", help="One setting of the triage, KEY=VALUE; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Receive X-rays by DICOM, triage complete studies, send SR and SC to a peer."""
    from pipelines.dicom_status import read_status

    if status:
        found = read_status(spool)
        finish(found.to_dict(), found.lines(), as_json=as_json, set_aside=len(found.set_aside))
        return
    if not detector:
        raise ConfigError("serve: no detector; give at least one with --detector")
    _need_pynetdicom()
    from esad_med.base.config import load_config
    from esad_med.base.execution import Place, open_executor
    from esad_med.base.interrupts import raise_if_interrupted
    from esad_med.cli.options import overrides
    from pipelines.dicom_node import serve as run_node
    from pipelines.dicom_settings import NodeConfig
    from pipelines.dicom_triage import make_study_triage

    files = {"tls_cert": tls_cert, "tls_key": tls_key, "tls_ca": tls_ca}
    flags = {"ae_title": ae_title, "host": host, "port": port, "allow": allow, "peer": peer}
    paths = {key: None if path is None else str(path) for key, path in files.items()}
    numbers = {"quiet_seconds": quiet_seconds, "metrics_port": metrics_port}
    given = overrides(settings, **flags, **paths, **numbers)
    chosen = load_config(NodeConfig, config, given)

    def started(port: int) -> None:
        where = f"{chosen.host}:{port}" if port else "the watched folder"
        say(f"{chosen.ae_title} takes images from {where}; research use only, not for diagnosis")

    with open_executor(Place(workers)) as executor, _leaving() as stop:
        triage = make_study_triage(
            detector,
            out=spool / "triage",
            config=triage_config,
            settings=triage_settings or [],
            device=device,
            encoder=encoder,
            executor=executor,
        )
        run_node(
            spool,
            triage,
            chosen,
            watch=watch,
            say=say,
            stop=stop,
            started=started,
            tick=raise_if_interrupted,
        )
    if as_json:
        finish(read_status(spool).to_dict(), [], as_json=True)


def _need_pynetdicom() -> None:
    try:
        import pynetdicom  # noqa: F401 # only asked whether it is there
    except ImportError as error:
        raise ConfigError(
            "serve: pynetdicom is not installed; pip install 'esad-med[dicom]'"
        ) from error


@contextmanager
def _leaving() -> Iterator[threading.Event]:
    """Give an event that SIGTERM sets; keep patients' data out of sight meanwhile."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    mask = os.umask(0o077)
    code = 0
    try:
        yield stop
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
        raise
    finally:
        os.umask(mask)
        signal.signal(signal.SIGTERM, before)
        if any(thread.name == "triage" and thread.is_alive() for thread in threading.enumerate()):
            say("the triage under way was cut off; it is done at the next start")
            os._exit(code)  # waiting for it would take as long as it takes
