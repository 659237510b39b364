"""What may be decoded at all, asked before memory is spent on it."""

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO

from pydantic import Field

from esad_med.base.config import Spec
from esad_med.base.errors import ImageError

_MIB = 1 << 20


class Limits(Spec):
    """The largest files and pictures that are opened; what exceeds them is set aside."""

    file_mib: float = Field(512, gt=0, description="Size of a file on disk, MiB.")
    unpacked_mib: float = Field(1024, gt=0, description="Size of its content when unpacked, MiB.")
    megapixels: float = Field(64, gt=0, description="Width x height of a picture, millions.")

    def check_pixels(self, width: int, height: int) -> None:
        """Refuse a picture of impossible or excessive size.

        Raises:
            ImageError: no pixels, or more than `megapixels`.
        """
        if width < 1 or height < 1:
            raise ImageError(f"size {width}x{height} pixels, expected at least 1x1; damaged header")
        if width * height > self.megapixels * 1e6:
            raise ImageError(
                f"says it has {width}x{height} pixels, expected at most {self.megapixels:g} million"
                " (limits.megapixels)"
            )

    def check_unpacked(self, size: float) -> None:
        """Refuse content of more bytes than `unpacked_mib`.

        Raises:
            ImageError: with the size.
        """
        if size > self.unpacked_mib * _MIB:
            raise ImageError(
                f"its content takes {size / _MIB:,.0f} MiB when unpacked, expected at most"
                f" {self.unpacked_mib:g} (limits.unpacked_mib)"
            )

    def read_bytes(self, path: Path) -> bytes:
        """The content of a file that is not too large.

        Raises:
            ImageError: not a regular file, cannot be read, empty, or larger than `file_mib`.
        """
        try:
            if not path.is_file():
                raise ImageError("not a regular file")
            with path.open("rb") as file:
                data = file.read(int(self.file_mib * _MIB) + 1)
        except OSError as error:
            raise ImageError(f"cannot be read ({error.strerror})") from error
        if not data:
            raise ImageError("is empty, expected an image")
        if len(data) > self.file_mib * _MIB:
            raise ImageError(
                f"is larger than {self.file_mib:g} MiB (limits.file_mib), expected one radiograph"
            )
        return data

    def gunzip(self, file: BinaryIO) -> bytes:
        """Unpack gzip data, no further than `unpacked_mib`.

        Raises:
            ImageError: damaged, or larger when unpacked.
        """
        most = int(self.unpacked_mib * _MIB)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                data = unpacked.read(most + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ImageError(f"damaged gzip data ({error})") from error
        if len(data) > most:
            raise ImageError(
                f"its content takes more than {self.unpacked_mib:g} MiB when unpacked"
                " (limits.unpacked_mib)"
            )
        return data

    def check_deflated(self, data: bytes) -> None:
        """Refuse raw deflate data (RFC 1951) that unpacks to more than `unpacked_mib`.

        Raises:
            ImageError: damaged, or too large.
        """
        state, done, most = zlib.decompressobj(-zlib.MAX_WBITS), 0, self.unpacked_mib * _MIB
        try:
            while data and not state.eof and done <= most:
                done += len(state.decompress(data, 1 << 22))  # thrown away: only counted
                data = state.unconsumed_tail
        except zlib.error as error:
            raise ImageError(f"damaged deflated data ({error})") from error
        self.check_unpacked(done)
