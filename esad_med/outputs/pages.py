"""What the pages share: templates, numbers as people read them, pictures inside the page."""

import base64
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from importlib import resources

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image

Bytes = npt.NDArray[np.uint8]


def _make_environment() -> jinja2.Environment:
    """Jinja with autoescape, strict about names, and the filters number, tied and percentile."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.filters["tied"] = tie_units
    environment.filters["percentile"] = format_percentile
    return environment


def render_page(
    name: str,
    styles: Sequence[str],
    *,
    extra_style: str = "",
    script: str = "",
    pictures: str = "data:",
    **values: object,
) -> Iterator[str]:
    """A page piece by piece: its template's blocks in the frame that all pages share.

    Args:
        name: of the template, which extends ``page.html``.
        styles: names of style sheets, in their order.
        extra_style: what is this very page's.
        script: the one that may run; none where empty.
        pictures: where they may come from, see `content_policy`.
        values: what the template shows; ``provenance`` is a table at the end, if there is one.
    """
    style = "".join(map(read_template, styles)) + extra_style
    values = {"provenance": None, **values, "script": script, "style": style}
    policy = content_policy(style, script=script, pictures=pictures)
    return _make_environment().get_template(name).generate(policy=policy, **values)


def read_template(name: str) -> str:
    """A template or style sheet of this package."""
    return resources.files("esad_med.outputs.templates").joinpath(name).read_text("utf-8")


def content_policy(style: str, *, script: str = "", pictures: str = "data:") -> str:
    """The page's Content-Security-Policy: this very style sheet, pictures inside the page, no more.

    So nothing that slipped into a page could run, load, or change how it looks.

    Args:
        style: of the page.
        script: the one that may run, and load others; none where empty.
        pictures: where they may come from.
    """
    run = f" script-src 'strict-dynamic' {_digest_source(script)};" if script else ""
    return (
        f"default-src 'none'; img-src {pictures}; style-src {_digest_source(style)};{run}"
        " base-uri 'none'; form-action 'none'"
    )


def _digest_source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def format_number(value: float) -> str:
    """Four significant digits, zeros included, so that neighbors compare; an exponent if needed."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:#.4g}".rstrip(".")
    return f"{value:.3e}" if abs(value) < 1e-3 else f"{value:,.0f}"


def tie_units(text: str) -> str:
    """Keep "1 %" on one line."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def format_percentile(value: float) -> str:
    """One decimal, rounded down, so that 100 means above all."""
    return f"{math.floor(value * 10 + 1e-9) / 10:.1f}"


def data_uri(picture: Bytes, kind: str, *, quality: int = 90) -> str:
    """A picture as a data URI: PNG keeps each pixel, JPEG keeps overviews small."""
    buffer = io.BytesIO()
    settings = {"quality": quality} if kind == "JPEG" else {"optimize": True}
    Image.fromarray(picture).save(buffer, format=kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
