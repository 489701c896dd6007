"""Reading the files that TLS options name."""

from __future__ import annotations

from pathlib import Path

from whip_core.errors import SettingsError

MAX_PEM_SIZE = 1 << 20
"""Bytes of a PEM file: four times a whole system's CA bundle, and an end for /dev/zero."""


def signature(*paths: Path | None) -> tuple[object, ...]:
    """What is another when a file has changed, or what a symlink on its way leads to."""
    return tuple(_of(path) for path in paths if path is not None)


def _of(path: Path) -> object:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_dev, found.st_size, found.st_mtime_ns


def read_pem_file(path: Path, source: str) -> bytes:
    """The content of a file; `source` (an option and the path) begins each error's text.

    Raises `SettingsError` when it is missing, not readable or larger than `MAX_PEM_SIZE`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PEM_SIZE + 1)
    except FileNotFoundError as error:
        raise SettingsError(
            f"{source} does not exist: correct the path (`whip pki --help` makes certificates)"
        ) from error
    except IsADirectoryError as error:
        raise SettingsError(f"{source} is a directory: give the file in it") from error
    except OSError as error:
        raise SettingsError(
            f"{source} cannot be read by this user: {error.strerror or error}"
        ) from error
    if len(data) > MAX_PEM_SIZE:
        raise SettingsError(f"{source} is not a PEM file for whip: it is larger than 1 MiB")
    return data
