"""The weighted syntax: weights and sections by hand, and how texts fall into chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.pipelines.conftest import LENGTH, tokenizer

from leandiffusion.core.errors import ConfigError, NotSupported
from leandiffusion.families.chunks import chunks_of, tokens_of, weighted
from leandiffusion.families.emphasis import parse, without_weights

ROOM = LENGTH - 2


def read(text: str) -> list[list[tuple[str, float]]]:
    return [[(piece.text, round(piece.weight, 6)) for piece in section] for section in parse(text)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("a cat", [("a cat", 1)]),
        ("a (red:1.3) cat", [("a ", 1), ("red", 1.3), (" cat", 1)]),
        ("(a) [b]", [("a", 1.1), (" ", 1), ("b", round(1 / 1.1, 6))]),
        ("((a))", [("a", 1.21)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3), (" c", 1.5)]),
        ("(a [b])", [("a ", 1.1), ("b", 1)]),
        (r"\(a\) \[b\] \\", [("(a) [b] \\", 1)]),
        ("(a: -0.5 )", [("a", -0.5)]),
        ("a:b, c|d, 1:2)", [("a:b, c|d, 1:2)", 1)]),
        ("(a (b", [("a ", 1.1), ("b", 1.21)]),
        ("a) b]", [("a) b]", 1)]),
        ("(:1.3) and (:0.5", [(" and ", 1), (":0.5", 1.1)]),
        ("BREAKFAST, aBREAK, ANDES", [("BREAKFAST, aBREAK, ANDES", 1)]),
    ],
)
def test_weights_by_hand(text: str, pieces: list[tuple[str, float]]) -> None:
    assert read(text) == [pieces]


def test_break_separates_sections_inside_brackets_too() -> None:
    assert read("a BREAK (b BREAK c:1.2)") == [[("a ", 1)], [("b ", 1.2)], [("c", 1.2)]]


def test_words_without_weights() -> None:
    assert without_weights(r"a (red:1.3) [cat] BREAK \(blue\)") == "a red cat (blue)"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[a|b]", "alternation"),
        ("[a:b:0.5]", "alternation"),
        ("[:b:10]", "alternation"),
        ("[(a|b:1.2)|c]", "alternation"),
        ("a cat AND a dog", "AND"),
        ("a cat <lora:night:0.8>", "load_lora_weights"),
    ],
)
def test_what_is_no_weight_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(NotSupported, match=named):
        parse(text)


@pytest.mark.parametrize("weight", ["1..3", ".", "+"])
def test_a_weight_that_is_no_number(weight: str) -> None:
    if weight == "+":
        assert read(f"(a:{weight})") == [[("a:+", 1.1)]]  # text, as there is no digit
        return
    with pytest.raises(ConfigError, match="no number"):
        parse(f"(a:{weight})")


@pytest.mark.parametrize("prompt", ["(" * 5000 + "red", "(red:99999999)", "((red:-2000):1000)"])
def test_a_weight_that_no_number_can_hold(prompt: str) -> None:
    with pytest.raises(ConfigError, match="weights go up to"):
        parse(prompt)


def texts_of(text: str) -> list[str]:
    words = tokenizer()
    return [words.decode(chunk.ids).replace(" ", "") for chunk in chunks_of(words, text)]


def test_chunks_are_cut_where_they_are_full() -> None:
    assert texts_of("a" * ROOM) == ["a" * ROOM]
    assert texts_of("a" * ROOM + "bc") == ["a" * ROOM, "bc"]
    assert texts_of("") == [""]


def test_chunks_are_cut_after_a_comma_that_is_near() -> None:
    assert texts_of("aaaa, " + "b" * ROOM) == ["aaaa,", "b" * ROOM]
    assert texts_of("a" * (ROOM - 1) + ", bc") == ["a" * (ROOM - 1) + ",", "bc"]
    assert texts_of("a" * ROOM + ", bc") == ["a" * ROOM, ",bc"]


def test_a_comma_that_is_far_does_not_count() -> None:
    from leandiffusion.families import chunks

    words = tokenizer()
    words.model_max_length = chunks.BACKTRACK + 4  # room for 22
    found = [words.decode(chunk.ids).replace(" ", "") for chunk in chunks_of(words, "a, " + "b" * 30)]
    assert found == ["a," + "b" * 20, "b" * 10]  # 20 tokens behind the comma: one too many
    found = [words.decode(chunk.ids).replace(" ", "") for chunk in chunks_of(words, "aa, " + "b" * 30)]
    assert found == ["aa,", "b" * 22, "b" * 8]


def test_break_begins_a_chunk_and_one_at_the_end_none() -> None:
    assert texts_of("a BREAK b BREAK") == ["a", "b"]
    assert texts_of("BREAK a") == ["", "a"]


def test_each_chunk_is_framed_and_short_texts_get_empty_ones() -> None:
    words = tokenizer()
    tokens = tokens_of(words, ["(a:2)", "b" * (ROOM + 1)], 2)
    begin, end = words.bos_token_id, words.eos_token_id
    a, b = (words(text, add_special_tokens=False)["input_ids"][0] for text in ("a", "b"))
    inner = words("bb", add_special_tokens=False)["input_ids"][0]
    empty = [begin, end, *[words.pad_token_id] * ROOM]
    assert tokens.ids.tolist() == [
        [[begin, a, end, *[words.pad_token_id] * (ROOM - 1)], empty],
        [[begin, *[inner] * ROOM, end], [begin, b, end, *[words.pad_token_id] * (ROOM - 1)]],
    ]
    assert tokens.weights[0, 0].tolist() == [1, 2, *[1] * (LENGTH - 2)]
    assert (tokens.weights[0, 1] == 1).all()
    assert (tokens.weights[1] == 1).all()


def test_weights_keep_the_mean_of_each_text() -> None:
    hidden = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    weights = torch.ones(2, 5)
    weights[1, 2] = 1.7
    found = weighted(hidden, weights)
    assert torch.equal(found[0], hidden[0])
    assert torch.allclose(found[1].mean(), hidden[1].mean())
    assert torch.allclose(found[1, 2] / found[1, 0], 1.7 * hidden[1, 2] / hidden[1, 0])


def test_a_mean_of_rounding_alone_is_left_alone() -> None:
    hidden: Any = torch.nn.functional.layer_norm(torch.randn(1, 5, 64), (64,))
    weights = torch.tensor([[1.0, 1.5, 1.0, 1.0, 1.0]])
    assert torch.equal(weighted(hidden, weights), hidden * weights[..., None])
