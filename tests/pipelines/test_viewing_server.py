"""The viewer's server: what it shows, to whom, and that nothing else can be had from it."""

import http.client
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from types import SimpleNamespace

import numpy as np
import openslide
import pytest
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from esad_med.base.errors import ConfigError
from esad_med.outputs.openseadragon import LICENSE, SCRIPT
from pipelines.viewing import ScreenedFolder, ViewSpec
from pipelines.viewing_server import HOST, OpenSlides, Site, ViewServer
from pipelines.viewing_slides import SlideFiles


@pytest.fixture(scope="module", autouse=True)
def library():
    """Stands for OpenSeadragon: no test here runs it."""
    with pytest.MonkeyPatch.context() as patch:
        found = {SCRIPT: b"// library", LICENSE: b"license"}
        patch.setattr("pipelines.viewing_server.read_openseadragon", lambda: found)
        yield found


@contextmanager
def serving(folder, *slides):
    """A server at work; it is asked by `ask`."""
    site = Site(ScreenedFolder.read(folder), SlideFiles(slides), ViewSpec())
    with ViewServer(site, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            site.close()


@pytest.fixture(scope="module")
def server(screening, composed):
    with serving(screening, composed) as found:
        yield found


def ask(server, path, *, method="GET", host=None, key=True):
    """Status, headers and body of a request whose path goes out as it is."""
    with closing(http.client.HTTPConnection(HOST, server.server_port, timeout=60)) as connection:
        target = f"/{server.site.key}/{path}" if key else path
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host or f"{HOST}:{server.server_port}")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def say_raw(server, data):
    """The first line of what comes back for bytes that no client would send."""
    with socket.create_connection((HOST, server.server_port), timeout=60) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").readline().decode()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("", "text/html"),
        ("index.html?x=1", "text/html"),
        (SCRIPT, "text/javascript"),
        (LICENSE, "text/plain"),
        ("tumor_1/report.html", "text/html"),
        ("tumor_1/thumbnail.jpg", "image/jpeg"),
        ("tumor_1/viewer/", "text/html"),
        ("tumor_1/viewer/index.html", "text/html"),
        ("tumor_1/viewer/heat.png", "image/png"),
        ("tumor_1/viewer/tiles/11/0_0.jpg", "image/jpeg"),
        ("%74umor_1/report.html", "text/html"),
    ],
)
def test_what_is_shown(server, path, kind):
    status, headers, body = ask(server, path)
    assert status == 200
    assert headers["Content-Type"].startswith(kind)
    assert headers["Content-Length"] == str(len(body))
    assert b"DOE^JANE" not in body
    for name in ("X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy"):
        assert headers[name]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "esad-med" in headers["Server"]
    assert "Python" not in headers["Server"]
    head = ask(server, path, method="HEAD")
    assert (head[0], head[2]) == (200, b"")
    assert head[1]["Content-Length"] == headers["Content-Length"]


def test_the_index_leads_to_every_viewer(server):
    page = ask(server, "")[2].decode()
    assert page.count("/viewer/index.html") == 2


def test_a_tile_is_the_slides(server, composed):
    theirs = DeepZoomGenerator(openslide.OpenSlide(composed / "tumor_1.tif"), 510, 1)
    level = theirs.level_count - 1
    body = ask(server, f"tumor_1/viewer/tiles/{level}/1_2.jpg")[2]
    shown = np.asarray(Image.open(io.BytesIO(body))).astype(int)
    assert np.abs(shown - np.asarray(theirs.get_tile(level, (1, 2))).astype(int)).mean() < 3


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "tumor_1/../slides.csv",
        "tumor_1/viewer/tiles/../../slide.json",
        "tumor_1/%2e%2e%2fslides.csv",
        "tumor_1/..%5cslides.csv",
        "tumor_1/viewer/%00",
        "tumor_1/report.html%00.jpg",
        "C:/windows",
        "tumor_1/%ff%fe",
        "tumor_1/%0d%0aX: y",
        "tumor_1/%e2%80%ae",
        ".",
    ],
)
def test_paths_that_lead_elsewhere_are_forbidden_and_told(server, path, caplog):
    path = path.replace(" ", "%20")
    status, _, body = ask(server, path)
    assert status == 403
    assert body.startswith(b"Forbidden: ")
    assert "refused '/" in caplog.text
    assert "(403)" in caplog.text


@pytest.mark.parametrize(
    "path",
    [
        "slides.csv",
        "journal.jsonl",
        "run.json",
        ".lock",
        "tumor_1/",
        "tumor_1/scores.csv",
        "tumor_1/slide.json",
        "tumor_1/heatmap.tif",
        "tumor_1/report.html/",
        "tumor_1//report.html",
        "%252e%252e/%252e%252e/etc/passwd",
        "lost/report.html",
        "tumor_1/viewer/tiles/99/0_0.jpg",
        "tumor_1/viewer/tiles/11/9_0.jpg",
        "tumor_1/viewer/tiles/11/-1_0.jpg",
        "tumor_1/viewer/tiles/11/0_0.jpgx",
        "tumor_1/viewer/tiles/%D9%A1/0_0.jpg",
    ],
)
def test_whatever_else_lies_there_is_not_found(server, path, caplog):
    status, _, body = ask(server, path)
    assert status == 404
    assert b"DOE^JANE" not in body
    assert "(404)" in caplog.text


def test_nothing_is_shown_without_the_key(server):
    for path in ("/", "/index.html", f"/{server.site.key[:-1]}/", "/tumor_1/report.html"):
        assert ask(server, path, key=False)[0] == 404
    assert ask(server, "/favicon.ico", key=False)[0] == 204
    for path in ("http://127.0.0.1/", "*", "https://elsewhere.example/x"):
        assert ask(server, path, key=False)[0] == 403
    assert len(server.site.key) >= 20


@pytest.mark.parametrize(
    "host", ["elsewhere.example", "elsewhere.example:{port}", "127.0.0.1", "127.0.0.1:1", "[::1]:1"]
)
def test_another_name_for_this_host_is_refused(server, host):
    assert ask(server, "", host=host.format(port=server.server_port))[0] == 403
    assert ask(server, "", host=f"localhost:{server.server_port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "XY"])
def test_other_methods_are_refused(server, method):
    status, headers, _ = ask(server, "", method=method)
    assert status == 405
    assert headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "403"),  # without a host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: 127.0.0.1\r\n\r\n", "403"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", "414"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", "431"),
        (b"GET / HTTP/9.9\r\n\r\n", "505"),
        (b"\x16\x03\x01\xff\xfe \x00 \x80\r\n\r\n", "400"),
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", "403"),
    ],
)
def test_malformed_requests_are_answered_and_the_server_goes_on(server, data, status):
    assert status in say_raw(server, data)
    assert ask(server, "")[0] == 200


def test_links_that_lead_out_are_not_followed(screening, composed, tmp_path, caplog):
    folder = shutil.copytree(screening, tmp_path / "screened")
    (tmp_path / "secret").write_text("secret")
    (folder / "tumor_1" / "report.html").unlink()
    (folder / "tumor_1" / "report.html").symlink_to(tmp_path / "secret")
    (folder / "tumor_1" / "heatmap.tif").unlink()
    (folder / "tumor_1" / "heatmap.tif").symlink_to(folder / "tumor_1" / "heatmap.tif")
    with serving(folder, composed) as server:
        for path in ("tumor_1/report.html", "tumor_1/viewer/heat.png"):
            status, _, body = ask(server, path)
            assert status == 404
            assert b"leads out of the folder" in body
    assert "leads out of the folder" in caplog.text


def test_a_slide_that_is_not_found_is_said_and_the_rest_is_shown(screening, tmp_path):
    with serving(screening) as server:
        for path in ("tumor_1/viewer/index.html", "tumor_1/viewer/tiles/11/0_0.jpg"):
            status, _, body = ask(server, path)
            assert status == 404
            assert b"tumor_1.tif: the slide's file was not found" in body
        assert ask(server, "tumor_1/report.html")[0] == 200


def test_many_slides_are_not_all_kept_open(screening, composed, monkeypatch):
    monkeypatch.setattr("pipelines.viewing_server._OPEN_SLIDES", 1)
    with serving(screening, composed) as server:
        slides = server.site._slides
        for name in ("tumor_1", "normal_1", "tumor_1"):
            assert ask(server, f"{name}/viewer/tiles/11/0_0.jpg")[0] == 200
            assert list(slides._open) == [name]


def test_many_at_once_get_what_they_asked_for(server):
    paths = [f"{name}/viewer/tiles/11/{x}_{y}.jpg" for name in ("tumor_1", "normal_1")
             for x in range(3) for y in range(3)]  # fmt: skip
    one_by_one = {path: ask(server, path)[2] for path in paths}
    together = {}
    threads = [
        threading.Thread(target=lambda path=path: together.update({path: ask(server, path)[2]}))
        for path in paths * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == one_by_one


def test_a_port_in_use_is_said(server):
    with pytest.raises(ConfigError, match="choose another --port"):
        ViewServer(server.site, server.server_port)


@pytest.mark.usefixtures("openseadragon")
def test_ctrl_c_ends_it_with_130(screening, composed):
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from esad_med.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "view", screening, "--slides", composed, "--no-browser"]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        url = process.stdout.readline().strip()
        assert url.startswith(f"http://{HOST}:")
        port, key = url.split(":")[2].split("/")[:2]
        with closing(http.client.HTTPConnection(HOST, int(port), timeout=60)) as connection:
            connection.request("GET", f"/{key}/normal_1/viewer/tiles/11/0_0.jpg")
            assert connection.getresponse().status == 200
            process.send_signal(signal.SIGINT)  # the connection is still open
            _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "not for diagnosis" in said


def test_four_slides_stay_open_and_the_longest_unused_goes_first():
    class Zoom:
        def __init__(self):
            self.slide, self.closed = self, False

        def close(self):
            self.closed = True

    opened = {name: Zoom() for name in "abcdef"}
    folder = SimpleNamespace(slides={name: name for name in opened})
    slides = OpenSlides(folder, SimpleNamespace(open=lambda name, _: opened[name]), None)
    for name in "abcdaef":
        with slides.using(name):
            pass
    assert [name for name, zoom in opened.items() if zoom.closed] == ["b", "c"]
    slides.close()
    assert all(zoom.closed for zoom in opened.values())
