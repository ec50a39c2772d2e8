"""What the tests would fetch from the hub: a stand-in for its tiny tokenizer, so that pipelines are built offline."""

from __future__ import annotations

import json
from pathlib import Path

TOKENIZER = "hf-internal-testing/tiny-random-clip"
COMMIT = "0" * 40


def fill(cache: Path) -> None:
    """Lay a CLIP tokenizer of single letters into a hub cache. Its ids stay below 1000, as the tests' models need.

    Texts become other ids than with the real one, so tests that compare with pixels written down fail for everybody.
    """
    folder = cache / f"models--{TOKENIZER.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for name, content in _files().items():
        (snapshot / name).write_text(content, encoding="utf-8")


def _files() -> dict[str, str]:
    letters = _letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    return {
        "vocab.json": json.dumps({token: i for i, token in enumerate(tokens)}),
        "merges.txt": "#version: 0.2\n",
        "tokenizer_config.json": json.dumps(settings),
        "config.json": json.dumps({"model_type": "clip"}),
    }


def _letters() -> list[str]:
    """The 256 printable stand-ins for bytes of byte-level BPE (Radford et al. 2019), in order of the bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    stands_for = {byte: byte for byte in printable} | {byte: 256 + i for i, byte in enumerate(others)}
    return [chr(stands_for[byte]) for byte in range(256)]
