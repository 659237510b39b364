"""Pages in a browser, from file://: the policy lets their own style pass, and nothing else."""

import os
import shutil
import subprocess

import pytest
from test_audit_page import make_page
from test_explain import explained_report
from test_report import make_report
from test_worklist import full_page

from esad_med.outputs.audit_page import render_audit_page
from esad_med.outputs.report import render_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not BROWSER, reason="neither chromium nor google-chrome is there")

PAGES = {
    "report": lambda: render_report(make_report()),
    "explained": lambda: render_report(explained_report()),
    "worklist": full_page,
    "audit": lambda: render_audit_page(make_page()),
}
SLIPPED = (
    "<script>document.body.dataset.ran = 'yes'</script>"
    "<img src='x:' onerror=\"document.body.dataset.ran = 'yes'\">"
    "<p style='color: red'>x</p><style>main { display: none }</style>"
    "<img src='https://127.0.0.1:9/'><iframe src='https://127.0.0.1:9/'></iframe>"
)


def show(path, folder):
    """The page as it stands after loading, and what the browser's console says."""
    arguments = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
    done = subprocess.run(
        [BROWSER, *arguments, f"--user-data-dir={folder}", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "HOME": str(folder)},
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_ours_breaks_no_rule_of_its_own(name, tmp_path):
    (tmp_path / "page.html").write_text(PAGES[name](), encoding="utf-8")
    shown, console = show(tmp_path / "page.html", tmp_path / "profile")
    assert "Research use only" in shown
    assert console == []


@pytest.mark.parametrize("name", PAGES)
def test_what_slipped_into_a_page_neither_runs_nor_loads_nor_hides(name, tmp_path):
    page = PAGES[name]().replace("<main>", f"<main>{SLIPPED}")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    shown, console = show(tmp_path / "page.html", tmp_path / "profile")
    assert "data-ran" not in shown
    words = ("inline script", "event handler", "inline style", "Loading the image", "Framing")
    refused = " ".join(console)
    assert [word for word in words if word.lower() not in refused.lower()] == []
