"""Read one IDX file, the format of MNIST, and trust nothing in it.

An IDX file of bytes is `00 00 08 N`, then N big-endian 32-bit sizes, then the bytes in row-major order; N is
3 for images and 1 for labels. The header says exactly how long the file must be: it is read first, and at
most one byte beyond that length is unpacked, so that neither a lying header nor a gzip bomb costs memory.
"""

import gzip
import io
import math
import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# The largest published file is 45 MiB. The cap, and not the file, bounds the memory a hostile file can take.
MAX_BYTES = 64 * 2**20
_PIECE = 2**16


class DataError(Exception):
    """A data set that is missing, damaged or not what its name says: one line, with the file and the cure."""


def read_idx(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, raw or gzipped whatever its suffix.

    Args:
        path: The file.

    Returns:
        An array of the shape in the file's header.

    Raises:
        DataError: The file cannot be read, or is not exactly one IDX array of 1 to `MAX_BYTES` bytes.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        ...     file.flush()
        ...     read_idx(file.name)
        array([7, 2, 1], dtype=uint8)
    """
    path = Path(path)
    name = repr(str(path))  # quoted: a path may hold a newline, and the message is one line
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # looked at before opening: a pipe would make us wait for ever
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise DataError(f"{name} is {kind}: an IDX file is needed in its place")
        with path.open("rb") as file:
            gzipped = file.peek(2).startswith(b"\x1f\x8b")
            return _parse(gzip.GzipFile(fileobj=file) if gzipped else file, name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name} is damaged gzip ({error}): download it again") from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{name} cannot be read ({reason}): check the file and its permissions") from error


def _parse(stream: io.BufferedReader | gzip.GzipFile, name: str) -> NDArray[np.uint8]:
    """Return the array in `stream`, having checked each part of it before reading the next."""
    start = stream.peek(64).lstrip(b"\xef\xbb\xbf \t\r\n")  # a byte-order mark and blanks may come first
    if start.startswith(b"<"):
        raise DataError(f"{name} is an HTML page, not an IDX file: the download failed, fetch it again")
    magic = stream.read(4)
    if not magic:
        raise DataError(f"{name} is empty: download it again")
    if len(magic) == 4 and (magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 3):
        raise DataError(
            f"{name} is not an IDX file of bytes (it starts with {magic.hex(' ')}, not with 00 00 08"
            " and a rank from 01 to 03): download it again"
        )
    sizes = stream.read(4 * magic[3]) if len(magic) == 4 else b""
    if not sizes or len(sizes) < 4 * magic[3]:
        raise DataError(f"{name} is truncated within its header: download it again")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    size = math.prod(shape)
    claim = f"its header says shape {shape}, {size} bytes"
    if size == 0:
        raise DataError(f"{name} holds no data ({claim}): download it again")
    if size > MAX_BYTES:
        raise DataError(f"{name} is over the limit of {MAX_BYTES} bytes ({claim}): download it again")
    # The one byte more shows a file that is too long, and at a right one's end has gzip verify its checksum.
    # Read in one piece, a gzipped file would be held three times over, and a short one at its claimed length.
    body = bytearray()
    while piece := stream.read(min(_PIECE, size + 1 - len(body))):
        body += piece
    if len(body) < size:
        raise DataError(f"{name} is truncated ({claim}, and {len(body)} follow it): download it again")
    if len(body) > size:
        raise DataError(f"{name} is too long ({claim}, and more follow it): download it again")
    return np.frombuffer(body, np.uint8).reshape(shape)
