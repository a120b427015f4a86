import math

import pytest
import torch

from tunesmith.export import nearest
from tunesmith.export.nearest import Change
from tunesmith.methods.parts import decompose


def drawn(out: int, inner: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, inner, generator=torch.Generator().manual_seed(seed))


def with_values(values: list[float], out: int = 12, inner: int = 9, seed: int = 0) -> torch.Tensor:
    """A matrix with these singular values."""
    u, v = torch.linalg.qr(drawn(out, len(values), seed))[0], torch.linalg.qr(drawn(inner, len(values), seed + 1))[0]
    return (u * torch.tensor(values)) @ v.T


def test_the_nearest_product_of_a_rank() -> None:
    """Eckart and Young: what is lost are the singular values that are left out."""
    change = nearest.of_matrix("q", with_values([4.0, 2.0, 1.0, 0.5]), weight=10.0, most=3, seed=0)
    assert change.energies_R.tolist() == pytest.approx([16.0, 4.0, 1.0], rel=1e-4) and change.energy == pytest.approx(21.25, rel=1e-5)
    module = nearest.lora(change, 2)
    found = module.scale * module.B @ module.A
    assert (with_values([4.0, 2.0, 1.0, 0.5]) - found).norm().item() == pytest.approx(math.sqrt(1.25), rel=1e-4)
    assert change.lost(2) == pytest.approx(math.sqrt(1.25 / 21.25), rel=1e-4)
    assert change.lost(3) == pytest.approx(math.sqrt(0.25 / 21.25), rel=1e-3)


def test_a_product_is_taken_apart_without_its_matrix() -> None:
    up, down = drawn(40, 6), drawn(6, 30, seed=1)
    whole, thin = nearest.of_matrix("q", up @ down, 1.0, 4, seed=0), nearest.of_product("q", up, down, 1.0, 4)
    assert thin.energies_R.tolist() == pytest.approx(whole.energies_R.tolist(), rel=1e-4)
    torch.testing.assert_close(thin.b_OR @ thin.a_RI, whole.b_OR @ whole.a_RI, rtol=1e-3, atol=1e-3)
    exact = nearest.of_product("q", up, down, 1.0, 6)
    torch.testing.assert_close(exact.b_OR @ exact.a_RI, up @ down, rtol=1e-4, atol=1e-4)
    assert exact.lost(6) < 1e-3


def test_a_large_matrix_goes_by_random_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_values([5.0, 3.0, 2.0, 0.01], out=60, inner=50)
    exact = nearest.of_matrix("q", matrix, 1.0, 3, seed=0)
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 8)
    drawn_by = [nearest.of_matrix("q", matrix, 1.0, 3, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(drawn_by[0].a_RI, drawn_by[1].a_RI), "by seed"
    for found in drawn_by:
        assert found.energies_R.tolist() == pytest.approx(exact.energies_R.tolist(), rel=1e-4)
    assert decompose.EXACT_UP_TO > 8


def changes() -> list[Change]:
    """Energies 9 1 of 10, and 4 4 2 of 10."""
    return [
        nearest.of_matrix("q", with_values([3.0, 1.0]), 1.0, 8, seed=0),
        nearest.of_matrix("v", with_values([2.0, 2.0, math.sqrt(2.0)], inner=5), 1.0, 8, seed=0),
    ]


def test_the_least_rank_that_holds_a_share_of_all_layers_together() -> None:
    assert [nearest.least_rank(changes(), share) for share in (0.6, 0.66, 0.85, 0.95)] == [1, 2, 2, 3]
    assert nearest.kept(changes(), 1) == pytest.approx(13 / 20, rel=1e-4) and nearest.kept(changes(), 2) == pytest.approx(18 / 20, rel=1e-4)
    cut = [nearest.of_matrix("q", with_values([3.0, 1.0]), 1.0, 1, seed=0)]
    assert nearest.least_rank(cut, 0.99) == 1, "all that is known, where that is not enough"


def test_one_rank_for_all_layers() -> None:
    """A layer that has fewer directions has rows of zeros."""
    module = nearest.lora(changes()[0], 20)
    assert module.A.shape == (20, 9) and module.B.shape == (12, 20)
    torch.testing.assert_close(module.B @ module.A, with_values([3.0, 1.0]), rtol=1e-4, atol=1e-4)
    assert not module.B[:, 9:].any() and not module.A[9:].any()


def test_nothing_changed() -> None:
    still = nearest.of_matrix("q", torch.zeros(4, 4), 1.0, 2, seed=0)
    assert still.lost(1) == 0.0 and nearest.kept([still], 1) == 1.0
