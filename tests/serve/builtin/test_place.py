from typing import Any

import torch
from torch import nn

from tests.tiny_models import tiny
from tunesmith.methods.parts.extras import TrainedCopy, TrainedRows
from tunesmith.models import slots
from tunesmith.serve.builtin.low_rank import Share
from tunesmith.serve.builtin.place import Place, Row, Stand, _axis, _cut


def row_of(*spans: tuple[int, int, str]) -> Row:
    return Row(spans[-1][1], spans, Share(spans[-1][1], ()), 0)


def place_of(row: Row | None, **modules: Any) -> Place:
    place = Place("here", lambda: row, None)
    place.stands = {name: Stand(module, place) for name, module in modules.items()}
    return place


def test_tokens_are_found_whatever_else_is_as_long() -> None:
    """Heads, channels and experts may be as many as tokens: those lie within a token, in memory."""
    x = torch.zeros(1, 4, 4 * 16).view(1, 4, 4, 16)
    assert _axis(x, 4) == 1 and _axis(x.transpose(1, 2), 4) == 2, "queries before and behind the turn of heads and tokens"
    assert _axis(torch.zeros(4, 4), 4) == 0 and _axis(torch.zeros(1, 4), 4) == 1 and _axis(torch.zeros(3), 4) is None
    cut = _cut(x.transpose(1, 2), 1, 3, 4)
    assert cut.shape == (1, 4, 2, 16)
    cut += 1
    assert x[0, 1:3].sum() == 2 * 64 and x[0, 0].sum() == 0, "a view"


def test_a_copy_answers_for_its_own_stretch_alone() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).requires_grad_(False)
    copy = TrainedCopy(layer)
    with torch.no_grad():
        copy.weight.copy_(torch.randn(3, 4))
        copy.bias.zero_()  # type: ignore[operator, union-attr]
    x = torch.randn(1, 5, 4)
    own, base = x @ copy.weight.T, layer(x)
    with torch.no_grad():
        for span in (slice(0, 2), slice(3, 5), slice(0, 5)):
            found = place_of(row_of((0, span.start, ""), (span.start, span.stop, "a"), (span.stop, 5, "")), a=copy)(layer, x)
            assert torch.allclose(found[:, span], own[:, span], atol=1e-6)
            rest = [at for at in range(5) if not span.start <= at < span.stop]
            assert torch.equal(found[:, rest], base[:, rest])
        both = place_of(row_of((0, 1, "a"), (1, 5, "b")), a=copy, b=TrainedCopy(nn.Linear(4, 3)).requires_grad_(False))
        both.stands["b"].module.weight.data.zero_()
        both.stands["b"].module.bias.data.fill_(7)
        found = both(layer, x)
    assert torch.allclose(found[:, :1], own[:, :1], atol=1e-6) and (found[:, 1:] == 7).all()
    assert torch.equal(layer(x), base), "the layer itself keeps its own"


def test_outputs_of_several_parts() -> None:
    """As a router's, which says scores, weights and numbers of experts."""

    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(4))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            scores = x @ self.weight.T
            return scores, scores.argmax(-1)

    router = Router().requires_grad_(False)
    copy = TrainedCopy(router)
    with torch.no_grad():
        copy.weight.copy_(torch.eye(4).flip(0))
        x = torch.eye(4)
        scores, chosen = place_of(row_of((0, 2, "a"), (2, 4, "")), a=copy)(router, x)
        assert chosen.tolist() == [3, 2, 2, 3] and torch.equal(scores[:2], x[:2].flip(1))
        assert place_of(row_of((0, 2, "a"), (2, 4, "a")), a=copy)(router, x)[1].tolist() == [3, 2, 1, 0], (
            "copies alone: the base is not asked"
        )
        assert place_of(None, a=copy)(router, x)[1].tolist() == [0, 1, 2, 3], "no row, no adapter"


def test_placeholders_are_clamped_for_the_base_alone() -> None:
    model = tiny("llama")
    embedding = model.get_input_embeddings()
    rows = TrainedRows([5], 64)
    place = place_of(row_of((0, 2, "a"), (2, 4, "")), a=rows)
    place.vocabulary = 96
    ids = torch.tensor([[5, 6, 5, 97]])
    with torch.no_grad():
        found = place(embedding, ids)
    assert (found[0, 0] == 0).all() and torch.equal(found[0, 1:3], embedding.weight[[6, 5]])
    assert torch.equal(found[0, 3], embedding.weight[95])


def test_what_is_heard_elsewhere() -> None:
    """A module may read one layer's input and change another's output."""

    class Added(nn.Module):
        def changed(self, layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return y + x

    norm, mlp = nn.LayerNorm(4).requires_grad_(False), nn.Linear(4, 4).requires_grad_(False)
    row = row_of((0, 1, ""), (1, 3, "a"))
    source, target = Place("norm", lambda: row, None), Place("mlp", lambda: row, None)
    source.listeners.add("a")
    target.stands["a"] = Stand(Added(), source)
    assert not source.is_free and not target.is_free
    x = torch.randn(1, 3, 4)
    slots.place(model := nn.ModuleDict({"norm": norm, "mlp": mlp}), {"norm": source, "mlp": target})  # type: ignore[dict-item]
    with torch.no_grad():
        found = mlp(norm(x))
        slots.lift(model, {"norm": source, "mlp": target})  # type: ignore[dict-item]
        wanted = mlp(norm(x))
    wanted[:, 1:] += x[:, 1:]
    assert torch.allclose(found, wanted)
