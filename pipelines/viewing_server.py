"""`esad-med view`: a screened folder on the loopback, for one person's browser.

What may be asked for is a short list; a request's path chooses among slides and names that are
known, and is never joined to a folder's. The rest is refused, and told in the log.
"""

import logging
import re
import secrets
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from data_prep.deep_zoom import DeepZoom
from esad_med.base.errors import ConfigError, EsadError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.limits import read_file
from esad_med.base.texts import printable
from esad_med.outputs.batch_index import render_batch_index
from esad_med.outputs.openseadragon import SCRIPT, read_openseadragon
from esad_med.outputs.viewer_page import encode_heat, encode_tile
from pipelines.viewing import INDEX, VIEWER, ScreenedFolder, ViewSpec, make_batch, make_viewer
from pipelines.viewing_slides import SlideFiles

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_OPEN_SLIDES = 4  # each may hold a quarter of a GB of decoded tiles
_PATIENCE_SECONDS = 30  # for a request to come in
_TOLD = 120  # characters of a refused path in the log
_TILE = re.compile(r"(\d{1,2})/(\d{1,7})_(\d{1,7})\.jpg", re.ASCII)
_PAGE = "text/html; charset=utf-8"
_TEXT = "text/plain; charset=utf-8"
# The pages carry the policy of their own script and style; these hold for whatever is answered.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_FOR_PAGES = "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_FOR_FILES = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Reply:
    """What a request is answered with."""

    data: bytes
    kind: str
    status: HTTPStatus = HTTPStatus.OK
    policy: str = _FOR_FILES
    keep: bool = False


class RefusedError(Exception):
    """Not answered: 403 for what no page of ours asks, 404 for what is not there."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class _OpenSlide:
    """An open slide, for one thread at a time."""

    zoom: DeepZoom
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class OpenSlides:
    """The slides that were looked at last, kept open."""

    def __init__(self, folder: ScreenedFolder, files: SlideFiles, spec: ViewSpec) -> None:
        self._folder, self._files, self._spec = folder, files, spec
        self._open: OrderedDict[str, _OpenSlide] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def using(self, case_id: str) -> Iterator[DeepZoom]:
        """A slide, for this thread alone.

        Raises:
            SlideError: its file is not found, another slide, or damaged.
        """
        with self._lock:
            entry = self._open.pop(case_id, None)
            if entry is None:
                zoom = self._files.open(self._folder.slides[case_id], self._spec)
                entry = _OpenSlide(zoom)
            self._open[case_id] = entry  # the last one
            entry.users += 1
            self._close_idle(len(self._open) - _OPEN_SLIDES)
        try:
            with entry.lock:
                yield entry.zoom
        finally:
            with self._lock:
                entry.users -= 1

    def close(self) -> None:
        """Close all that nobody reads from."""
        with self._lock:
            self._close_idle(len(self._open))

    def _close_idle(self, count: int) -> None:
        for case_id in [name for name, entry in self._open.items() if not entry.users][
            : max(0, count)
        ]:
            self._open.pop(case_id).zoom.slide.close()


class Site:
    """The pages and pictures of a screened folder, by the path of a request.

    Args:
        folder: what was screened.
        files: where its slides lie.
        spec: how they are shown.

    Raises:
        ConfigError: OpenSeadragon is not installed.
    """

    def __init__(self, folder: ScreenedFolder, files: SlideFiles, spec: ViewSpec) -> None:
        self._folder, self._spec = folder, spec
        self._library = read_openseadragon()
        self._slides = OpenSlides(folder, files, spec)
        #: The first part of every path: who cannot read the command's output cannot guess it.
        self.key = secrets.token_urlsafe(16)

    def close(self) -> None:
        """Close the slides."""
        self._slides.close()

    def answer(self, target: str) -> Reply:
        """The answer to a request's target, such as ``/KEY/CASE/viewer/index.html``.

        Raises:
            RefusedError: nothing that is shown here.
            EsadError: what stands there is damaged, or its slide is not found.
        """
        if target == "/favicon.ico":  # browsers ask by themselves
            return Reply(b"", _TEXT, HTTPStatus.NO_CONTENT)
        key, *parts = _split(target)
        if not secrets.compare_digest(key.encode(), self.key.encode()):
            raise RefusedError(HTTPStatus.NOT_FOUND, "without the key of this server")
        if parts in ([""], [INDEX]):
            page = render_batch_index(make_batch(self._folder, served=True))
            return Reply(page.encode(), _PAGE, policy=_FOR_PAGES)
        if len(parts) == 1 and parts[0] in self._library:
            kind = "text/javascript; charset=utf-8" if parts[0] == SCRIPT else _TEXT
            return Reply(self._library[parts[0]], kind, keep=True)
        case_id, *rest = parts or [""]
        if case_id not in self._folder.slides:
            raise RefusedError(HTTPStatus.NOT_FOUND, "no such slide")
        return self._of_slide(case_id, "/".join(rest))

    def _of_slide(self, case_id: str, name: str) -> Reply:
        kinds = {"report.html": _PAGE, "thumbnail.jpg": "image/jpeg"}
        if name in kinds:
            path = self._folder.file(case_id, name)
            limit = self._spec.limits.file_mib
            data = read_file(path, most_mib=limit, setting="file_mib", error=ConfigError)
            return Reply(data, kinds[name])
        if name in (f"{VIEWER}/", f"{VIEWER}/{INDEX}"):
            with self._slides.using(case_id):  # or say at once why there is nothing to see
                page, _ = make_viewer(self._folder, self._folder.slides[case_id], self._spec)
            return Reply(page.encode(), _PAGE, policy=_FOR_PAGES)
        if name == f"{VIEWER}/heat.png":
            _, heat = make_viewer(self._folder, self._folder.slides[case_id], self._spec)
            return Reply(encode_heat(heat), "image/png")
        if found := _TILE.fullmatch(name.removeprefix(f"{VIEWER}/tiles/")):
            return self._tile(case_id, *map(int, found.groups()))
        raise RefusedError(HTTPStatus.NOT_FOUND, "nothing that is shown")

    def _tile(self, case_id: str, level: int, column: int, row: int) -> Reply:
        with self._slides.using(case_id) as zoom:
            try:
                tile = zoom.tile(level, column, row)
            except ValueError as error:
                raise RefusedError(HTTPStatus.NOT_FOUND, str(error)) from error
        return Reply(encode_tile(tile, quality=self._spec.quality), "image/jpeg", keep=True)


def _split(target: str) -> list[str]:
    """The parts of a path, decoded once.

    Raises:
        RefusedError: a part that would mean another folder to some system.
    """
    path = target.partition("?")[0]
    if not path.startswith("/") or path.startswith("//"):
        raise RefusedError(HTTPStatus.FORBIDDEN, "an absolute address instead of a path")
    try:
        parts = [unquote(part, errors="strict") for part in path[1:].split("/")]
    except UnicodeDecodeError:
        raise RefusedError(HTTPStatus.FORBIDDEN, "bytes that are no text") from None
    for part in parts:
        if part in {".", ".."} or any(sign in part for sign in "/\\:\0"):
            raise RefusedError(HTTPStatus.FORBIDDEN, "a path that leads out of the folder")
        if printable(part) != part or not path.isascii():
            raise RefusedError(HTTPStatus.FORBIDDEN, "bytes that are no text")
    return parts


class ViewServer(ThreadingHTTPServer):
    """Answers on 127.0.0.1, until Ctrl-C.

    Args:
        site: what is shown.
        port: 0 takes any free one.

    Raises:
        ConfigError: the port cannot be listened on.
    """

    daemon_threads = True

    def __init__(self, site: Site, port: int) -> None:
        self.site = site
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"{HOST}:{port} cannot be listened on ({reason}); choose another --port"
            ) from error

    @property
    def url(self) -> str:
        """Where the index is."""
        return f"http://{HOST}:{self.server_port}/{self.site.key}/"

    def service_actions(self) -> None:
        """Answer Ctrl-C between two requests."""
        raise_if_interrupted()

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that has gone is nobody's mistake; the rest is ours."""
        gone = isinstance(sys.exception(), OSError)
        what = "a connection broke off" if gone else "unexpected error, please report it"
        logger.log(logging.DEBUG if gone else logging.ERROR, what, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # so that what is malformed gets a status, too
    server_version, sys_version = "esad-med", ""
    timeout = _PATIENCE_SECONDS

    def do_GET(self) -> None:
        """Answer with a page or a picture."""
        try:
            self._check_host(self.headers.get_all("Host", []))
            reply = self.server.site.answer(self.path)
        except RefusedError as error:
            self._refuse(error.status, str(error))
        except EsadError as error:
            logger.warning("%s", error)
            self._send(Reply(f"{error}\n".encode(), _TEXT, HTTPStatus.NOT_FOUND))
        except KeyboardInterrupt:  # the main thread answers it
            self.close_connection = True
        else:
            self._send(reply)

    do_HEAD = do_GET

    def _check_host(self, names: Sequence[str]) -> None:
        """Only under our own name: a page elsewhere may let its name lead here (DNS rebinding)."""
        port = self.server.server_port
        if list(names) not in ([f"{HOST}:{port}"], [f"localhost:{port}"]):
            raise RefusedError(HTTPStatus.FORBIDDEN, "for a host of another name")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        told = ascii(getattr(self, "path", "")[:_TOLD])
        logger.warning("refused %s (%d): %s", told, status, reason)
        self._send(Reply(f"{status.phrase}: {reason}\n".encode(), _TEXT, status))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server refuses by itself: other methods, malformed or endless requests."""
        self.close_connection = True
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered")
        else:
            self._refuse(HTTPStatus(code), "malformed")

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        if reply.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.data)))
        self.send_header("Cache-Control", "private, max-age=3600" if reply.keep else "no-store")
        self.send_header("Content-Security-Policy", reply.policy)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.data)

    def log_message(self, format: str, *args: object) -> None:
        """Answered requests are of interest to nobody."""
        logger.debug("%s", ascii(format % args))


def serve_folder(site: Site, port: int, started: Callable[[str], None]) -> None:
    """Answer until Ctrl-C.

    Args:
        site: what is shown.
        port: of 127.0.0.1; 0 takes any free one.
        started: called with the address of the index.

    Raises:
        ConfigError: the port cannot be listened on.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    with ViewServer(site, port) as server:
        started(server.url)
        try:
            server.serve_forever()
        finally:
            site.close()
