"""The errors a user can cause.

    EsadError
    ├── ConfigError     settings, YAML files, overrides, the environment, output folders
    ├── CaseError       manifests, tables of samples, annotations: what is said about the data
    ├── SlideError      a whole slide that cannot be opened, placed in micrometres, or stained
    ├── ImageError      a tile picture or radiograph that cannot be read
    ├── StoreError      a SampleStore whose parts disagree
    └── ModelError      a Detector that is damaged, or meets data it was not trained for

A message says the thing, what was found, what was expected, and the remedy. A caller's own mistake
is a ``ValueError``; what cannot happen is an ``assert``.
"""

import errno

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class EsadError(Exception):
    """A user's data or settings cannot be used; the message says what to do about it."""


class ConfigError(EsadError):
    """A setting, a configuration file, the environment or the output folder is wrong."""


class CaseError(EsadError):
    """A manifest, a table or an annotation contradicts itself or the data."""


class SlideError(EsadError):
    """A whole slide cannot be opened, placed in micrometres, or normalized."""


class ImageError(EsadError):
    """A single image cannot be read as what it was said to be."""


class StoreError(EsadError):
    """The parts of a SampleStore are missing, damaged, or disagree."""


class ModelError(EsadError):
    """A Detector is damaged, or was given data outside its contract."""


def disk_failure(error: BaseException | None) -> int | None:
    """The ``errno`` of a full or failing disk, where an error or what it was made of has one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return error.errno
        error = error.__cause__
    return None
