"""What may be decoded at all, asked before memory is spent on it.

The defaults lie beyond what hospitals produce, and below what fells a workstation. They decide
whether a file is read, never what is read of it: no result or digest depends on them.
"""

import gzip
import stat
import zlib
from pathlib import Path
from typing import BinaryIO

from pydantic import Field

from esad_med.base.config import Spec
from esad_med.base.errors import EsadError, ImageError

_MIB = 1 << 20


class Limits(Spec):
    """The largest files and pictures that are opened; what exceeds them is set aside.

    Time and memory of a case hold in processes of their own (``--workers`` 1 or more).
    """

    file_mib: float = Field(
        512, gt=0, description="Radiograph or tile picture on disk, MiB; it is read as a whole."
    )
    unpacked_mib: float = Field(
        1024, gt=0, description="Its content when unpacked, MiB: 1 MB of deflate can be 1 GB."
    )
    megapixels: float = Field(
        64, gt=0, description="Its width x height, millions; detectors have up to 20."
    )
    nesting: int = Field(
        64, ge=1, description="Depth of DICOM sequences, XML elements and JSON: ours have up to 10."
    )
    slide_gigapixels: float = Field(
        200, gt=0, description="Level 0 of a slide, width x height; 200,000 squared has 40."
    )
    slide_levels: int = Field(64, ge=1, description="Levels of a slide; halving needs up to 18.")
    slide_tile_megapixels: float = Field(
        64, gt=0, description="One stored tile of a slide, which is decoded as a whole."
    )
    slide_pixels_per_byte: float = Field(
        2000, gt=0, description="Level-0 pixels of a TIFF over its size; white JPEG has 200."
    )
    annotation_mib: float = Field(
        256, gt=0, description="Outlines (XML, GeoJSON) on disk, MiB; 100,000 cells take 25."
    )
    annotation_points: int = Field(
        10_000_000, ge=1, description="XML elements, or JSON lists and objects, or mask corners."
    )
    mask_megapixels: float = Field(100, gt=0, description="A mask image's coarsest level.")
    table_mib: float = Field(
        4096, gt=0, description="A CSV when unpacked, MiB; 100 million tiles have 8,000."
    )
    table_columns: int = Field(10_000, ge=1, description="Columns that its first line can hold.")
    table_ratio: float = Field(
        200, ge=1, description="A .csv.gz when unpacked over its size on disk; tables have 20."
    )
    json_mib: float = Field(
        1024, gt=0, description="A store's, a detector's or a run's JSON; a million slides' store."
    )
    weights_mib: float = Field(
        16384, gt=0, description="A detector's or an encoder's weights; Table 6 takes 80."
    )
    features_mib: float = Field(
        65536, gt=0, description="Feature vectors of a slide; 100,000 tiles of 1536 take 590."
    )
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
        data = read_file(path, most_mib=self.file_mib, setting="file_mib", error=ImageError)
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


def read_file(path: Path, *, most_mib: float, setting: str, error: type[EsadError]) -> bytes:
    """The content of a file that is not too large; errors do not name it.

    Args:
        path: the file.
        most_mib: its size at most.
        setting: the field of `Limits` that says so, for the message.
        error: what to raise.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise error("not a regular file")
        if found.st_size > most_mib * _MIB:
            raise error(
                f"is larger than {most_mib:g} MiB (limits.{setting}); is it the right file?"
            )
        with path.open("rb") as file:
            return file.read(found.st_size)  # a larger number would be allocated
    except OSError as problem:
        raise error(f"cannot be read ({problem.strerror})") from problem
    except ValueError as problem:
        raise error("cannot be read (its path has a null character)") from problem
