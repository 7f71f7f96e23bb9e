"""Files that are whole or not there at all, and files of JSON lines."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def write_aside(path: Path) -> Iterator[TextIO]:
    """Open ``NAME.partial`` for the body to write text to, and rename it to ``path`` when the body is done.

    A body that raises leaves ``path`` as it was. Raises OSError.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as stream:
            yield stream
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json_lines(path: Path, rows: Iterable[dict], *, ensure_ascii: bool = False, allow_nan: bool = True) -> None:
    """Replace ``path`` by one JSON line a row; the options are those of ``json.dumps``. Raises OSError."""
    with write_aside(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=ensure_ascii, allow_nan=allow_nan) + "\n")


def append_json_line(path: Path, row: dict) -> None:
    """Add one JSON line, whole or not at all; an unfinished line before it is ended first.

    Raises ValueError, and adds nothing, for a number that is not finite; OSError.
    """
    line = (json.dumps(row, allow_nan=False) + "\n").encode()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line
        try:
            if os.write(handle, line) != len(line):
                raise OSError(errno.ENOSPC, "only a part of the line could be written", str(path))
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def read_json_lines(path: Path) -> Iterator[tuple[int, dict | None]]:
    """Number (from 1) and object of each line; None for a line that is no JSON object."""
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield number, row if isinstance(row, dict) else None


def sync_folder(folder: Path) -> None:
    """Put the names of a folder's files on disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
