"""Read one IDX file, the format of MNIST, and validate every byte of it.

An IDX file of bytes is `00 00 08 N`, then N big-endian 32-bit sizes, then the bytes in row-major order; N is
3 for images and 1 for labels. The header gives the exact length of the file. It is read first, and at most one byte
beyond that length is unpacked: neither a false header nor a gzip bomb can exhaust the memory.
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

from jaxnn.errors import JaxnnError

# The largest published file has 45 MiB. This limit bounds the memory that a hostile file can take.
MAX_BYTES = 64 * 2**20
_PIECE = 2**16


class DataError(JaxnnError):
    """A data set that is missing, damaged, or not the one that its name promises."""


def read_idx(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes. It may be raw or gzipped; its suffix does not matter.

    Args:
        path: The file.

    Returns:
        The array, in the shape that the file's header gives.

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
    name = repr(str(path))  # quoted, because a path may contain a newline and the message must be one line
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # checked before opening: reading from a pipe would wait for ever
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise DataError(f"{name} is {kind}: put an IDX file in its place")
        with path.open("rb") as file:
            gzipped = file.peek(2).startswith(b"\x1f\x8b")
            return _parse(gzip.GzipFile(fileobj=file) if gzipped else file, name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name} is damaged gzip ({error}): download it again") from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{name} cannot be read ({reason}): check the file and its permissions") from error


def _parse(stream: io.BufferedReader | gzip.GzipFile, name: str) -> NDArray[np.uint8]:
    """Return the array in `stream`. Each part is checked before the next one is read."""
    start = stream.peek(64).lstrip(b"\xef\xbb\xbf \t\r\n")  # skip a byte-order mark and blanks
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
    # Reading one byte more detects a file that is too long, and makes gzip verify its checksum at the end.
    # Read in one piece, a gzipped file would take three times its size, and a short one the size that it claims.
    body = bytearray()
    while piece := stream.read(min(_PIECE, size + 1 - len(body))):
        body += piece
    if len(body) < size:
        raise DataError(f"{name} is truncated ({claim}, and {len(body)} follow it): download it again")
    if len(body) > size:
        raise DataError(f"{name} is too long ({claim}, and more follow it): download it again")
    return np.frombuffer(body, np.uint8).reshape(shape)
