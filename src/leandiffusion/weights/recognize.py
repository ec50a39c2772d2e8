"""What a file named .safetensors that is not one really is, by its first bytes."""

from __future__ import annotations

AGAIN = "Download or save it again."
_TORCH = (
    "it may be a pickle, which can run any code when it is opened: look for a .safetensors download of the same model, "
    "or convert it if you trust it (rename it to .ckpt, and the message says how)"
)
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "fetch it with: git lfs pull"),
    (b"PK\x03\x04", "a pickle or zip that was renamed: a zip archive", _TORCH),
    (b"\x80\x02", "a pickle or zip that was renamed: a pickle", _TORCH),
    (b"\x80\x03", "a pickle or zip that was renamed: a pickle", _TORCH),
    (b"\x80\x04", "a pickle or zip that was renamed: a pickle", _TORCH),
    (b"\x80\x05", "a pickle or zip that was renamed: a pickle", _TORCH),
    (b"GGUF", "a GGUF file", "quantized GGUF weights are not supported: look for .safetensors"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"\x89HDF", "an HDF5 file", "look for .safetensors of the same model"),
    (b"\x89PNG", "a PNG picture", "give the checkpoint's file"),
    (b"\xff\xd8\xff", "a JPEG picture", "give the checkpoint's file"),
    (b"\0" * 16, "zeros, as an interrupted download leaves behind", "download it again"),
)
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")
_WEB = (
    "download the file itself: on huggingface.co use the download button, or the address with /resolve/ in place of "
    "/blob/; gated models need a login"
)


def what_it_is(first: bytes) -> str | None:
    """'a web page …: download …' for the first bytes of a file of a known other kind; None for all else."""
    for magic, kind, fix in _KINDS:
        if first.startswith(magic):
            return f"{kind}: {fix}"
    text = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_PAGES):
        return f"a web page saved under that name: {_WEB}"
    if text.startswith(b"{"):
        return f"JSON text, such as a server's answer or a config: {_WEB}"
    if text and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in first):
        words = " ".join(first.decode("ascii").split())[:60]
        return f"plain text ({words!r}): {_WEB}"
    return None
