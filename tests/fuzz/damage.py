"""Damage to files: bytes that change, values of the wrong kind or size, keys that go, come, or come twice.

Everything is drawn from one `random.Random`, so that a case is made again from its number.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

# Written into JSON as they stand, also where they are no JSON.
RAW = (
    "null", "true", "false", "0", "1", "-1", "2", "3", "-0", "2147483648", "-2147483648", "1000000000", "1000000000000",
    "9223372036854775808", "1" + "0" * 30, "9" * 5000, "0.5", "-0.5", "2.0", "1e-300", "1e300", "1e999", "NaN",
    "Infinity", "-Infinity", '""', '"a"', '"0"', '"F32"', '"../x"', '"/etc"', '"\\ud800"', '"\\u0000"', '"\\u001b[31m"',
    '"' + "x" * 20_000 + '"', "[]", "{}", "[[]]", "[null]", '["a"]', "[0]", "[-1]", "[1,2]", "[1e308,1]", "[true]",
    '{"a":1}', '{"a":{"b":[]}}', '["diffusers","AutoencoderKL"]', '[null,"x"]', "[" * 300 + "]" * 300,
    "[" + ",".join(["7"] * 3000) + "]", "[" + ",".join(["1000000007"] * 40_000) + "]",
    '{"' + '":{"'.join("abcdefgh" * 20) + '":1' + "}" * 160,
)  # fmt: skip


def damaged_json(value: Any, random: Random) -> bytes:
    """The text of `value` with one to three things wrong with it."""
    value = json.loads(json.dumps(value))
    raw: dict[str, str] = {}
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = _change(value, random, raw)
    text = json.dumps(value)
    for mark, written in raw.items():
        text = text.replace(f'"{mark}"', written)
    content = text.encode()
    return damaged_bytes(content, random) if random.random() < 0.2 else content


def _change(value: Any, random: Random, raw: dict[str, str]) -> Any:
    """One change somewhere inside a JSON value. What is to be written as it stands is a mark, noted in `raw`."""

    def anything() -> str:
        mark = f"@{len(raw)}@"
        raw[mark] = random.choice(RAW)
        return mark

    if random.random() < 0.02 or not isinstance(value, dict | list) or not value:
        return anything()
    key = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if isinstance(value[key], dict | list) and random.random() < 0.6:
        value[key] = _change(value[key], random, raw)
        return value
    match random.randrange(6):
        case 0:
            del value[key]
        case 1 | 2:
            value[key] = anything()
        case 3:
            value[key] = random.choice(([value[key]], {"a": value[key]}, [value[key]] * 5))
        case 4 if isinstance(value, dict):
            value[random.choice(("", "new", "_note", f"{key} ", f"{key}s", str(key) * 2000))] = anything()
        case _:
            other = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
            value[key], value[other] = value[other], value[key]
    return value


def damaged_bytes(content: bytes, random: Random) -> bytes:
    """Bytes changed, cut out, doubled, put in; or the end is missing."""
    damaged = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(damaged) + 1)
        match random.randrange(5):
            case 0 if at < len(damaged):
                damaged[at] = random.randrange(256)
            case 1:
                del damaged[at : at + random.randrange(1, 9)]
            case 2:
                damaged[at:at] = damaged[at : at + random.randrange(1, 40)]
            case 3:
                damaged[at:at] = random.choice((b"\0", b"\xff", b"[", b"}", b'"', b",", b"\xed\xa0\x80", b"1" * 5000))
            case _:
                del damaged[at if random.random() < 0.2 else len(damaged) :]
    return bytes(damaged)


def damaged_header(header: dict[str, Any], data: bytes, random: Random) -> bytes:
    """A safetensors file whose header, or its length, or the file's end, is wrong."""
    if random.random() < 0.05:
        text = _large_header(random)
    elif random.random() < 0.3:
        text = damaged_bytes(json.dumps(header).encode(), random)
    else:
        text = damaged_json(header, random)
    length = random.choice((0, 1, len(text) - 1, len(text) + 1, 2**31, 2**63)) if random.random() < 0.1 else len(text)
    end = random.choice((0, 1, 100)) if random.random() < 0.1 else len(data)
    return struct.pack("<Q", length % 2**64) + text + data.ljust(end, b"\0")[:end]


def _large_header(random: Random) -> bytes:
    entry = '{"dtype":"F32","shape":[],"data_offsets":[0,4]}'
    return random.choice(
        (
            lambda: "{" + "".join(f'"n{i}":{entry},' for i in range(20_000)) + f'"n19999":{entry}}}',
            lambda: "{" + ",".join(f'"n{i}":{{}}' for i in range(120_000)) + "}",
            lambda: f'{{"w":{{"dtype":"F32","shape":[1{",1000000007" * 200_000}],"data_offsets":[0,4]}}}}',
            lambda: f'{{"{"x" * 2_000_000}":{{"dtype":"{"y" * 2_000_000}","shape":[],"data_offsets":[0,4]}}}}',
            lambda: "[" * 1_000_000,
            lambda: '{"a":' * 100_000,
            lambda: f'{{"w":{{"dtype":"F32","shape":[{"9" * 6000}],"data_offsets":[0,4]}}}}',
        )
    )().encode()


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of those chunks: (type, data)."""
    made = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        made += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return made


def damaged_png(record: dict[str, Any], random: Random) -> bytes:
    """A small PNG whose record, chunks, size or bytes are wrong."""
    pick: Callable[..., Any] = random.choice
    text = json.dumps(record).encode() if random.random() < 0.3 else damaged_json(record, random)
    side = pick((8, 8, 8, 0, 13_000, 2**31, 2**32 - 1))
    header = struct.pack(">IIBBBBB", side, 8, pick((8, 8, 16, 3)), pick((2, 2, 0, 3, 9)), 0, 0, 0)
    chunk = pick((_plain, _plain, _compressed, _compressed, _international, _bomb))(text, random)
    pixels = (b"IDAT", zlib.compress(bytes(200)))
    chunks = [(b"IHDR", header), chunk, pixels, (b"IEND", b"")]
    match random.randrange(8):
        case 0:
            chunks.insert(random.randrange(5), chunk)
        case 1:
            random.shuffle(chunks)
        case 2:
            chunks = [chunks[0], pixels, chunk, chunks[-1]]
        case 3:
            chunks[1:1] = [_plain(bytes([65 + random.randrange(26)]) * 9000, random)] * random.randrange(1, 200)
    content = png_chunks(*chunks)
    return damaged_bytes(content, random) if random.random() < 0.4 else content


_KEY = b"leandiffusion"


def _plain(text: bytes, random: Random) -> tuple[bytes, bytes]:
    return b"tEXt", random.choice((_KEY, _KEY, _KEY, b"", b"k" * 80)) + random.choice((b"\0", b"\0", b"\0", b"")) + text


def _compressed(text: bytes, random: Random) -> tuple[bytes, bytes]:
    packed = zlib.compress(text)
    return b"zTXt", _KEY + random.choice((b"\0\0", b"\0\0", b"\0\7", b"")) + packed[: random.choice((None, None, 9))]


def _international(text: bytes, random: Random) -> tuple[bytes, bytes]:
    packed, flag = random.choice(((text, b"\0"), (zlib.compress(text), b"\1"), (text, b"\1")))
    return b"iTXt", _KEY + b"\0" + flag + random.choice((b"\0", b"\5")) + b"\0" * random.choice((2, 2, 1)) + packed


def _bomb(text: bytes, random: Random) -> tuple[bytes, bytes]:
    """A hundred megabytes of text in a hundred kilobytes."""
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(100)) + packer.flush()
    return random.choice(((b"zTXt", _KEY + b"\0\0" + packed), (b"iTXt", _KEY + b"\0\1\0\0\0" + packed)))
