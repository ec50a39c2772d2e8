"""One text of a PNG file, found by walking its chunks: the picture is neither read nor decoded.

Format: PNG specification (W3C, third edition), sections 5 and 11.3.3: a signature, then chunks of length, type, data
and checksum. Texts are tEXt, zTXt (compressed) or iTXt (UTF-8), and may come before or after the pixels.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from ..core.errors import ConfigError

MAX_TEXT = 4_000_000
"""Bytes of a text, as it lies in the file and unpacked."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 500_000  # pixels lie in chunks of kilobytes, so a picture of a gigabyte has fewer


def read_png_text(path: Path, keyword: str) -> str | None:
    """The first text under `keyword`; None when the file has none. Takes time by the number of chunks, not by the size.

    Raises ConfigError, naming the file, when it is not PNG, is broken before the text, or holds a text of more than
    MAX_TEXT bytes; OSError when it cannot be read.
    """
    with path.open("rb") as stream:
        if stream.read(8) != _SIGNATURE:
            raise ConfigError(f"{path} is not a picture in PNG format, the one that carries records.")
        try:
            return _find(stream, os.fstat(stream.fileno()).st_size, keyword.encode("latin-1"))
        except _Broken as error:
            raise ConfigError(f"{path} is broken: {error}. Take another copy of the picture.") from None


class _Broken(Exception):
    """What is wrong with the file."""


def _find(stream: BinaryIO, size: int, keyword: bytes) -> str | None:
    for number in range(_MAX_CHUNKS):
        start = stream.read(8)
        if len(start) < 8:
            return None  # cut off behind what was looked through: texts may have been lost with the rest
        length, kind = struct.unpack(">I4s", start)
        if number == 0 and kind != b"IHDR":
            raise _Broken(f"its first chunk is {kind!r}, expected b'IHDR'")
        if stream.tell() + length + 4 > size:
            raise _Broken(f"a chunk of {length} bytes passes the end of the file")
        if kind == b"IEND":
            return None
        if kind not in (b"tEXt", b"zTXt", b"iTXt") or not _begins(stream, length, keyword):
            stream.seek(length + 4, os.SEEK_CUR)
            continue
        if length > MAX_TEXT:
            raise _Broken(f"its {keyword.decode()!r} text has {length} bytes, the limit is {MAX_TEXT}")
        data = stream.read(length)
        if zlib.crc32(kind + data) != int.from_bytes(stream.read(4), "big"):
            raise _Broken(f"the checksum of its {keyword.decode()!r} text is wrong")
        return _text(kind, data[len(keyword) + 1 :])
    raise _Broken(f"it has more than {_MAX_CHUNKS} chunks")


def _begins(stream: BinaryIO, length: int, keyword: bytes) -> bool:
    """Whether the chunk whose data are next is under `keyword`. The stream stays where it is."""
    place = stream.tell()
    found = stream.read(min(length, len(keyword) + 1))
    stream.seek(place)
    return found == keyword + b"\0"


def _text(kind: bytes, data: bytes) -> str:
    if kind == b"zTXt":
        return _decoded(_unpacked(data[:1], data[1:]))
    if kind == b"tEXt":
        return _decoded(data)
    packed, method, rest = data[:1], data[1:2], data[2:]
    parts = rest.split(b"\0", 2)  # language, translated keyword, text
    if len(parts) < 3:
        raise _Broken("its iTXt chunk ends before its text")
    return _decoded(_unpacked(method, parts[2]) if packed != b"\0" else parts[2], "utf-8")


def _unpacked(method: bytes, data: bytes) -> bytes:
    if method != b"\0":
        raise _Broken(f"its text is packed by the unknown method {method!r}")
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MAX_TEXT + 1)
    except zlib.error as error:
        raise _Broken(f"its text does not unpack ({error})") from None
    if len(text) > MAX_TEXT:
        raise _Broken(f"its text unpacks to more than {MAX_TEXT} bytes")
    if not unpacker.eof:
        raise _Broken("its text does not unpack (the end is missing)")
    return text


def _decoded(data: bytes, encoding: str = "latin-1") -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise _Broken(f"its text is not UTF-8 (byte {error.start})") from None
