"""What a malformed case is, and how the groups of them are written down."""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

READS = "reads"


class Malformed(NamedTuple):
    """A file with the outcome it must have: "reads", or the class of an error of ours."""

    name: str
    reader: str
    file: str
    data: bytes
    expected: str

    def write(self, folder: Path) -> Path:
        """The file, in a folder of its own."""
        path = folder / self.file
        folder.mkdir(parents=True)
        path.write_bytes(self.data)
        return path


def cases(
    reader: str, file: str, expected: str, contents: Mapping[str, bytes | str]
) -> Iterator[Malformed]:
    """Cases of one reader and one outcome, by name."""
    for name, content in contents.items():
        data = content.encode() if isinstance(content, str) else content
        yield Malformed(f"{reader}: {name}", reader, file, data, expected)


def damaged(good: bytes) -> dict[str, bytes]:
    """What copies, mail programs and download pages make of any file."""
    half = len(good) // 2
    return {
        "empty": b"",
        "one byte": good[:1],
        "four bytes": good[:4],
        "sixteen bytes": good[:16],
        "half of it": good[:half],
        "all zeros": bytes(len(good)),
        "begins with zeros": bytes(512) + good[512:],
        "a web page instead": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "a Git LFS pointer instead": b"version https://git-lfs.github.com/spec/v1\nsize 12345\n",
        "each byte inverted": bytes(255 - byte for byte in good[:4096]),
        "as UTF-16": good[:2048].decode("latin-1").encode("utf-16"),
        "as Base64": base64.b64encode(good[:4096]),
        "a shell script instead": b"#!/bin/sh\nrm -rf /\n",
        "a ZIP archive instead": b"PK\x03\x04" + bytes(60),
        "a Mac resource fork instead": b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60),
    }
