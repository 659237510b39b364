"""What may be decoded at all, asked before memory is spent on it."""

import gzip
import stat
import zlib
from pathlib import Path
from typing import BinaryIO

from pydantic import Field

from esad_med.base.config import Spec
from esad_med.base.errors import ImageError

_MIB = 1 << 20


class Limits(Spec):
    """The largest files and pictures that are opened; what exceeds them is set aside.

    Time and memory of a case hold in processes of their own (``--workers`` 1 or more).
    """

    file_mib: float = Field(512, gt=0, description="Size of a file on disk, MiB.")
    unpacked_mib: float = Field(1024, gt=0, description="Size of its content when unpacked, MiB.")
    megapixels: float = Field(64, gt=0, description="Width x height of a picture, millions.")

    case_seconds: float = Field(86_400, gt=0, description="Time for one case.")
    still_seconds: float = Field(
        900,
        gt=0,
        description="Time in which a case must get further, by a batch of tiles or images.",
    )
    case_gib: float = Field(8, gt=0, description="Memory for one case, beyond what is loaded, GiB.")

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
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
                raise ImageError("not a regular file")
            if found.st_size > self.file_mib * _MIB:
                raise ImageError(
                    f"is larger than {self.file_mib:g} MiB (limits.file_mib), expected one"
                    " radiograph"
                )
            data = path.read_bytes()
        except OSError as error:
            raise ImageError(f"cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ImageError("cannot be read (its path has a null character)") from error
        if not data:
            raise ImageError("is empty, expected an image")
        return data

    def gunzip(self, file: BinaryIO, *, most: int | None = None) -> bytes:
        """Unpack gzip data, no further than `unpacked_mib`.

        Args:
            file: gzip data.
            most: bytes that are expected at most, where that is known.

        Raises:
            ImageError: damaged, or larger when unpacked.
        """
        most = self._most(most)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                data = unpacked.read(most + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ImageError(f"damaged gzip data ({error})") from error
        if len(data) > most:
            raise self._too_large(most)
        return data

    def inflate(self, data: bytes, *, most: int | None = None) -> bytes:
        """Unpack raw deflate data (RFC 1951), no further than `unpacked_mib`; counted, then kept.

        Args:
            data: without a header of zlib's or gzip's.
            most: bytes that are expected at most, where that is known.

        Raises:
            ImageError: damaged, cut off, or larger when unpacked.
        """
        most = self._most(most)
        state, done = zlib.decompressobj(-zlib.MAX_WBITS), 0
        try:
            for at in range(0, len(data), _MIB):
                rest = data[at : at + _MIB]
                while rest and not state.eof and done <= most:
                    done += len(state.decompress(rest, 4 * _MIB))  # thrown away: only counted
                    rest = state.unconsumed_tail
            if done > most:
                raise self._too_large(most)
            return zlib.decompress(data, -zlib.MAX_WBITS)
        except zlib.error as error:
            raise ImageError(f"damaged deflated data ({error})") from error

    def _most(self, most: int | None) -> int:
        allowed = int(self.unpacked_mib * _MIB)
        return allowed if most is None else min(most, allowed)

    def _too_large(self, most: int) -> ImageError:
        return ImageError(
            f"its content takes more than {most / _MIB:,.1f} MiB when unpacked, more than its kind"
            f" needs (limits.unpacked_mib is {self.unpacked_mib:g})"
        )
