"""The feed-forward in parts: the same numbers, and only where nobody sees how often its layers are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from leandiffusion.modules import transformer
from leandiffusion.modules.transformer import FeedForward
from leandiffusion.techniques.hooks import around_forward

CHANNELS = 6


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> FeedForward:
    monkeypatch.setattr(transformer, "INNER_BYTES", 8 * CHANNELS * 4 * 5)  # of five tokens
    torch.manual_seed(0)
    return FeedForward(CHANNELS).requires_grad_(False)


def calls_of(layer: nn.Module) -> list[int]:
    """Tokens of each call of a layer, noted without a hook."""
    tokens: list[int] = []
    forward = type(layer).forward

    class Noting(type(layer)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> Any:
            tokens.append(x.shape[:-1].numel())
            return forward(self, x)

    layer.__class__ = Noting
    return tokens


@pytest.mark.parametrize("shape", [(2, 7), (1, 5), (3, 2), (1, 1), (2, 20)])
@torch.no_grad()
def test_in_parts_is_as_a_whole(shape: tuple[int, int], layer: FeedForward) -> None:
    x = torch.randn(*shape, CHANNELS)
    whole = layer.net[2](layer.net[0](x))
    tokens = calls_of(layer.net[2])
    # 1e-6 relative: a product of fewer rows may add in another order
    assert torch.allclose(layer(x), whole, rtol=0, atol=1e-6 * float(whole.abs().max()))
    assert tokens == ([shape[0] * shape[1]] if shape[0] * shape[1] <= 5 else split(shape[0] * shape[1]))


def split(tokens: int) -> list[int]:
    return [5] * (tokens // 5) + ([tokens % 5] if tokens % 5 else [])


@torch.no_grad()
def test_tokens_that_lie_apart(layer: FeedForward) -> None:
    x = torch.randn(CHANNELS, 7, 2).permute(2, 1, 0)
    assert torch.allclose(layer(x), layer.net[2](layer.net[0](x.contiguous())), atol=1e-6)


@pytest.mark.parametrize("onlooker", ["hook", "hook before", "own forward", "gradients", "compiler"])
def test_who_looks_on_sees_one_call(onlooker: str, layer: FeedForward) -> None:
    x, inner = torch.randn(2, 7, CHANNELS), layer.net[0].proj
    tokens = calls_of(inner)
    if onlooker == "hook":
        inner.register_forward_hook(lambda module, args, out: None)
    if onlooker == "hook before":
        inner.register_forward_pre_hook(lambda module, args: None)
    if onlooker == "own forward":
        forward = inner.forward
        inner.forward = lambda x: forward(x)
    if onlooker == "compiler":
        layer.net[0].compile(backend="eager")
    with torch.set_grad_enabled(onlooker == "gradients"):
        layer(x)
    assert tokens == [14]


@pytest.mark.parametrize("heavy", [False, True])
@torch.no_grad()
def test_heavy_weights_that_travel_come_once(heavy: bool, layer: FeedForward, monkeypatch: pytest.MonkeyPatch) -> None:
    nbytes = sum(p.nbytes for p in layer.parameters())
    monkeypatch.setattr(transformer, "LIGHT_BYTES", nbytes - 1 if heavy else nbytes)
    x, come = torch.randn(2, 7, CHANNELS), []

    def bring(module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        come.append(module)
        return forward(*args, **kwargs)

    expected = layer(x)
    for each in (layer.net[0].proj, layer.net[2]):
        around_forward(each, bring, only_moves=True)
    assert torch.allclose(layer(x), expected, atol=1e-6)
    assert len(come) == (2 if heavy else 2 * len(split(14)))
