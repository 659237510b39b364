"""Names and texts meant ill, or merely odd: a table, and a generator."""

import numpy as np

TABLE = (
    *("", ".", "..", "...", "/", "//", "\\", "a/b", "../../etc/passwd", "..\\..\\x", "/etc/passwd"),
    *("a/../../b", "~", "~root", "$HOME", "%2e%2e%2f", "C:\\x", "\\\\host\\share", "file:///etc/x"),
    *(
        "a\x00b",
        "\x00",
        "a\nb",
        "a\r\nb",
        "a\rb",
        "\t",
        "a\tb",
        "\x1b[31mred",
        "\x1b]0;t\x07",
        "\x9b2J",
    ),
    *("CON", "con", "NUL", "nul.txt", "COM1", "LPT9.tif", "AUX .x", "PRN", "aux.tar.gz", "CONIN$"),
    *("a.", "a..", "a ", " a", "a. ", ".hidden", "-rf", "--out", "-", "_", "x" * 200, "x" * 255),
    *("µ" * 101, "é" * 100, "\U0001f9ec" * 50, "x" * 5000),
    *(
        "\u202egnp.svs",
        "a\u200bb",
        "a\u200db",
        "\ufeffa",
        "a\u2066b\u2069",
        "a\xadb",
        "\u2028",
        "\x85",
    ),
    *("e\u0301", "\xe9", "S1", "s1", "stra\xdfe", "STRASSE", "\u0130", "i\u0307", "\ufb01", "fi"),
    *("\ud800", "a\udcffb", "\U000e0041", "\ufffe", "\U0010ffff", "Z\u0337\u0321\u0353algo"),
    *("=1+1", "+1+1", "-1+1", "@SUM(1)", "=cmd|' /C calc'!A0", '=HYPERLINK("http://x")', "\uff1d1"),
    *(
        "\t=1",
        "\r=1",
        "\n=1",
        " =1",
        ";=1",
        "a;=1",
        "a,=1",
        'a",=1',
        "'=1",
        '"=1"',
        "=1;@x\t+2",
        "--",
    ),
    *("-5", "+5", "1e5", "-1e-5", "nan", "-inf", "0x10", "1_000", "\u0663", "-5-5"),
    "<script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script><style>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
    '"><iframe src=//evil.example></iframe>',
    "' onmouseover='alert(1)",
    "--><!--",
    "<![CDATA[x]]>",
    "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>&b;",
    "&lt;script&gt;",
    "&#x3c;script>",
    "{{ 7 * 7 }}",
    "{% for x in y %}",
    "{{ ''.__class__.__mro__ }}",
    "${7*7}",
    "#{7*7}",
    "<%= 1 %>",
    "%s%s%n",
    "{0.__class__}",
    "$x^2$",
    "$\\frac{$",
    "\\input{x}",
    "`id`",
    "$(id)",
    "; rm -rf .",
    "| id",
    "!!python/object/apply:os.system [id]",
    "Robert'); DROP TABLE students;--",
    "A\\B^C=D",
    "run.json",
    "Journal.jsonl",
    "SLIDES.CSV",
    ".x.123.partial",
)
_SIGNS = (
    "abcXYZ019 ._-/\\<>&\"'=+@;,:|{}$%#\t\n\r\x00\x1b\x7fµé\u202e\u200b\u0301\ufeff\ud800\U0001f9ec"
)


def odd_texts(count: int, *, seed: int = 0) -> list[str]:
    """The table, then texts made of its pieces and of odd signs, ``count`` of them and all new."""
    rng = np.random.default_rng(seed)
    found = dict.fromkeys(TABLE[:count])
    while len(found) < count:
        pieces = [
            TABLE[rng.integers(len(TABLE))]
            if rng.random() < 0.3
            else "".join(_SIGNS[i] for i in rng.integers(len(_SIGNS), size=rng.integers(1, 12)))
            for _ in range(rng.integers(1, 4))
        ]
        found["".join(pieces)[:300]] = None
    return list(found)
