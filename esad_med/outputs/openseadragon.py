"""OpenSeadragon, the deep-zoom library of the viewer: where it stands and how it gets there.

It is no part of this repository. The source archive of openslide-python, which pip fetches and
checks, carries it; ``python -m esad_med.outputs.openseadragon ARCHIVE`` takes it out.
"""

import hashlib
import sys
import tarfile
from importlib import resources
from pathlib import Path

from esad_med.base.errors import ConfigError, EsadError
from esad_med.base.limits import read_file
from esad_med.base.runs import atomic_file

VERSION = "6.1.1"
ARCHIVE = "openslide_python-1.4.7.tar.gz"
SCRIPT, LICENSE = "openseadragon.js", "openseadragon.license.txt"
#: How it gets there, line by line.
REMEDY = (
    "python -m pip download --no-deps --no-binary openslide-python openslide-python==1.4.7",
    f"python -m esad_med.outputs.openseadragon {ARCHIVE}",
)
_EXAMPLES = "openslide_python-1.4.7/examples/deepzoom"
# ours -> theirs, and its SHA-256
_MEMBERS = {
    SCRIPT: (
        f"{_EXAMPLES}/static/openseadragon.js",
        "86b60a9088c8c162bef278bbf22e070958ded16acf4627a73e206c95ea42831e",
    ),
    LICENSE: (
        f"{_EXAMPLES}/licenses/LICENSE.openseadragon",
        "634a1392da774db80e9880d45d4182536c4543b6b965c3081f8f95c2e22bb1b1",
    ),
}
_ARCHIVE_DIGEST = "730fed798de683b00c8ef4d956f3d429cc02f2c449eb0d58944e1769ba7983cc"
_MOST_MIB = 8.0


def read_openseadragon() -> dict[str, bytes]:
    """The library and its license, by file name, checked.

    Raises:
        ConfigError: not installed, or another file than the one that was tested.
    """
    return {name: _read_checked(name) for name in _MEMBERS}


def _read_checked(name: str) -> bytes:
    path = _folder() / name
    how = "\n    ".join(("run", *REMEDY))
    if not path.is_file():
        raise ConfigError(f"OpenSeadragon {VERSION} is not installed ({name}); {how}")
    data = read_file(path, most_mib=_MOST_MIB, setting="file_mib", error=ConfigError)
    if hashlib.sha256(data).hexdigest() != _MEMBERS[name][1]:
        raise ConfigError(f"{name}: is not that of OpenSeadragon {VERSION}; {how}")
    return data


def install_openseadragon(archive: Path, folder: Path | None = None) -> None:
    """Take the library and its license out of openslide-python's source archive.

    The archive's own digest is checked before it is unpacked, so nothing odd can stand in it.

    Args:
        archive: as pip downloads it.
        folder: where to; by default beside the templates, where the viewer looks.

    Raises:
        ConfigError: another archive, or the folder cannot be written.
    """
    try:
        data = read_file(archive, most_mib=_MOST_MIB, setting="file_mib", error=ConfigError)
    except ConfigError as error:
        raise ConfigError(f"{archive}: {error}") from error
    if hashlib.sha256(data).hexdigest() != _ARCHIVE_DIGEST:
        raise ConfigError(
            f"{archive}: is not {ARCHIVE} as published (its SHA-256 is another); get it by"
            f" {REMEDY[0]}"
        )
    with tarfile.open(archive, "r:gz") as members:
        for name, (member, _) in _MEMBERS.items():
            file = members.extractfile(member)
            assert file is not None  # the digest says what stands there
            with atomic_file((folder or _folder()) / name) as temporary:
                temporary.write_bytes(file.read())


def _folder() -> Path:
    return Path(str(resources.files("esad_med.outputs.templates")))


def main() -> None:
    """``python -m esad_med.outputs.openseadragon ARCHIVE``: install, or say why not."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m esad_med.outputs.openseadragon {ARCHIVE}")
    try:
        install_openseadragon(Path(sys.argv[1]))
        read_openseadragon()
    except EsadError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(4)


if __name__ == "__main__":
    main()
