"""The tokenizer: equal ids to transformers' CLIPTokenizer opened on the same files, its interface, its errors."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from leandiffusion.core.errors import CheckpointNotFound, ConfigError, MalformedFile
from leandiffusion.modules.tokenizer import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MERGES = [
    ("t", "h"),
    ("th", "e</w>"),
    ("c", "a"),
    ("ca", "t</w>"),
    ("'", "s</w>"),
    ("Ã", "©</w>"),
    ("i", "n"),
    ("in", "g</w>"),
]
ASTRONAUT = [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]


def vocabulary() -> dict[str, int]:
    """Every byte, alone and at a word's end, what MERGES make of them, and the two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in MERGES), BOS, EOS]
    return {token: index for index, token in enumerate(tokens)}


def write_folder(folder: Path, config: dict, special: dict | None = None, added: dict | None = None) -> Path:
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES), encoding="utf-8")
    files = {"tokenizer_config.json": config, "special_tokens_map.json": special, "added_tokens.json": added}
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def token(content: str, **flags: bool) -> dict:
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False, **flags}


def published(pad_token: str) -> tuple[dict, dict]:
    """tokenizer_config.json and special_tokens_map.json as the SD1 and SD2 repositories have them."""
    roles = {"bos_token": token(BOS), "eos_token": token(EOS), "unk_token": token(EOS)}
    typed = {role: {"__type": "AddedToken", **value} for role, value in roles.items()}
    config = {**typed, "pad_token": EOS, "model_max_length": 77, "do_lower_case": True, "errors": "replace"}
    return config, {**roles, "pad_token": pad_token}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders in every layout that CLIP tokenizers have been published in."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("tokenizers")
    last = max(vocabulary().values())
    decoder = {str(last - 1): token(BOS, special=True), str(last): token(EOS, special=True, normalized=False)}
    made = {
        "bare": write_folder(root / "bare", {"model_max_length": 77}),
        "sd1": write_folder(root / "sd1", *published(EOS)),
        "sd2": write_folder(root / "sd2", *published("!")),
        "decoder": write_folder(
            root / "decoder",
            {"added_tokens_decoder": decoder, "bos_token": BOS, "eos_token": EOS, "pad_token": "!", "unk_token": EOS,
             "model_max_length": 77},
        ),
        "extended": write_folder(root / "extended", *published(EOS), {"<cat-toy>": last + 1, "Style": last + 2}),
        "serialized": root / "serialized",
    }  # fmt: skip
    transformers.CLIPTokenizer.from_pretrained(made["sd2"]).save_pretrained(made["serialized"])
    assert not (made["serialized"] / "vocab.json").exists(), "this layout has tokenizer.json alone"
    return made


@pytest.fixture(scope="module")
def pairs(layouts: dict[str, Path]) -> dict[str, tuple]:
    import transformers

    load = transformers.CLIPTokenizer.from_pretrained
    return {name: (load(path), CLIPTokenizer.from_pretrained(path)) for name, path in layouts.items()}


FRAGMENTS = [
    "the cat's", " THE\tCAT\n\n", BOS, EOS, "<|EndOfText|>", "<|", "|>", "!", "!!", "'S 'RE it'll", "caf\u00e9",
    "e\u0301", "\u0130stanbul", "\u01c5", "\u00df", "\u3000", "\u200b", "\x00", "\x85", "\xa0", "12 3.5", "\u00b2",
    "\u4f60\u597d", "\U0001f468\u200d\U0001f680", "a-b_c", "</w>", "<cat-toy>", "<CAT-TOY>", "Style", "style",
    "_", "...?", "singing",
]  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=40), st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=8).map("".join)
)


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(text=TEXTS, length=st.integers(2, 90))
def test_ids_equal_transformers(pairs: dict[str, tuple], text: str, length: int) -> None:
    for name, (theirs, ours) in pairs.items():
        for arguments in ({}, {"padding": "max_length", "truncation": True, "max_length": length}):
            expected, got = theirs(text, **arguments), ours(text, **arguments)
            assert got.input_ids == expected.input_ids, name
            assert got.attention_mask == expected.attention_mask, name
        assert ours.decode(got.input_ids) == theirs.decode(got.input_ids), name
        assert ours.decode(got.input_ids, True) == theirs.decode(got.input_ids, skip_special_tokens=True), name
        assert ours.tokenize(text) == theirs.tokenize(text), name


def test_settings_equal_transformers(pairs: dict[str, tuple]) -> None:
    for name, (theirs, ours) in pairs.items():
        for role in ("bos", "eos", "unk", "pad"):
            for attribute in (f"{role}_token", f"{role}_token_id"):
                assert getattr(ours, attribute) == getattr(theirs, attribute), (name, attribute)
        assert (ours.vocab_size, len(ours), ours.get_vocab()) == (theirs.vocab_size, len(theirs), theirs.get_vocab())
        assert ours.model_max_length == 77


def test_transformers_opens_what_we_save(pairs: dict[str, tuple], tmp_path: Path) -> None:
    import transformers

    text = "".join(FRAGMENTS)
    for name, (theirs, ours) in pairs.items():
        ours.save_pretrained(tmp_path / name)
        for reopened in (CLIPTokenizer, transformers.CLIPTokenizer):
            again = reopened.from_pretrained(tmp_path / name)
            assert again(text).input_ids == theirs(text).input_ids, (name, reopened)
            assert (again.pad_token, again.model_max_length) == (theirs.pad_token, 77), (name, reopened)


def test_standard_vocabulary() -> None:
    tokenizer = CLIPTokenizer.standard()
    text = "a photo of an astronaut riding a horse on mars"
    assert tokenizer(text).input_ids == ASTRONAUT
    assert tokenizer.decode(ASTRONAUT, skip_special_tokens=True) == text
    assert (tokenizer.vocab_size, len(tokenizer)) == (49408, 49408)
    assert CLIPTokenizer.standard(pad_token="!").pad_token_id == 0


def test_batches_and_tensors() -> None:
    import torch

    tokenizer = CLIPTokenizer(vocabulary(), MERGES, model_max_length=8)
    end = tokenizer.eos_token_id
    batch = tokenizer(["the cat", "the cat the the cat"], padding="max_length", truncation=True, return_tensors="pt")
    assert batch.input_ids.shape == batch["attention_mask"].shape == (2, 8)
    assert batch.input_ids.dtype == torch.int64
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [1] * 7 + [0]]
    assert batch.to(torch.int32).input_ids.dtype == torch.int32
    assert tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True) == ["the cat", "the cat the the cat"]
    assert tokenizer("the cat", return_tensors="pt").input_ids.shape == (1, 4)
    assert [len(row) for row in tokenizer(["the", "the cat the"], padding="longest").input_ids] == [5, 5]
    assert [len(row) for row in tokenizer(["the", "the cat the"]).input_ids] == [3, 5]
    assert len(tokenizer("the " * 20, padding="max_length").input_ids) == 22, "nothing is cut unless asked for"
    cut = tokenizer("the " * 20, truncation=True, max_length=5).input_ids
    assert len(cut) == 5
    assert cut[-1] == end, "the end token survives the cut"
    assert tokenizer.encode("the", add_special_tokens=False) == [tokenizer.get_vocab()["the</w>"]]


def test_threads_share_one_tokenizer() -> None:
    tokenizer = CLIPTokenizer.standard()
    texts = [f"a photo number {number} of an astronaut" for number in range(64)]
    lengths = [5 + number % 70 for number in range(64)]

    def ids(text: str, length: int) -> list[int]:
        return tokenizer(text, padding="max_length", truncation=True, max_length=length).input_ids

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ids, texts, lengths))
    assert together == [ids(text, length) for text, length in zip(texts, lengths, strict=True)]


def test_needs_no_torch() -> None:
    code = (
        "import sys; from leandiffusion.modules.tokenizer import CLIPTokenizer; "
        "CLIPTokenizer.standard()('a horse', padding='max_length'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"text": 7}, "int"),
        ({"text": ["a", None]}, "NoneType"),
        ({"text": "lone \udcff surrogate"}, "surrogate"),
        ({"text": "a", "padding": "left"}, "'max_length'"),
        ({"text": "a", "truncation": True, "max_length": 1}, "max_length=1"),
        ({"text": ["a", "a a"], "return_tensors": "pt"}, "padding"),
        ({"text": "a", "return_tensors": "tf"}, "'pt'"),
    ],
)
def test_wrong_arguments(arguments: dict, word: str) -> None:
    tokenizer = CLIPTokenizer(vocabulary(), MERGES)
    with pytest.raises(ConfigError, match=word):
        tokenizer(**arguments)


def test_wrong_vocabularies() -> None:
    with pytest.raises(ConfigError, match="pad_token='<pad>'"):
        CLIPTokenizer(vocabulary(), MERGES, pad_token="<pad>")
    with pytest.raises(ConfigError, match="do not fit the vocabulary"):
        CLIPTokenizer(vocabulary(), [("th", "eatre")])
    with pytest.raises(ConfigError, match="model_max_length=1"):
        CLIPTokenizer(vocabulary(), MERGES, model_max_length=1)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("vocab.json", b"{", "vocab.json is not valid JSON"),
        ("vocab.json", b"{}", "no vocabulary"),
        ("vocab.json", b'{"a": "1"}', "'a'"),
        ("vocab.json", b'{"a": 1, "b": 1}', "one id to several"),
        ("merges.txt", b"#version: 0.2\nt h\nthe\n", "line 3 is 'the'"),
        ("merges.txt", b"\xff\xfe", "UTF-8"),
        ("merges.txt", b"th eatre\n", "do not fit"),
        ("tokenizer_config.json", b'{"pad_token": {"lstrip": true}}', "special tokens"),
        ("tokenizer_config.json", b'{"bos_token": "<s>"}', "'<s>'"),
        ("added_tokens.json", b'{"<cat-toy>": 9000}', "9000"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, word: str) -> None:
    folder = write_folder(tmp_path / "tokenizer", {})
    (folder / name).write_bytes(content)
    with pytest.raises(MalformedFile, match=word) as caught:
        CLIPTokenizer.from_pretrained(tmp_path, subfolder="tokenizer")
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "content", ["{}", '{"model": {"type": "Unigram"}}', '{"model": {"vocab": {"a": 0}, "merges": [[1]]}}']
)
def test_broken_tokenizer_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises((MalformedFile, CheckpointNotFound), match=r"tokenizer\.json"):
        CLIPTokenizer.from_pretrained(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="no such folder"):
        CLIPTokenizer.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary()))
    with pytest.raises(CheckpointNotFound, match=r"merges\.txt"):
        CLIPTokenizer.from_pretrained(tmp_path)
