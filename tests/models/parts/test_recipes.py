"""Tensors made again: exactly, once for all who want them, and never from the wrong memory."""

# mypy: disable-error-code="arg-type,var-annotated"

import pytest
import torch

from tunesmith.models.parts import recipes


class Doubled(torch.autograd.Function):
    """A part: y = 2·x, which keeps x."""

    @staticmethod
    def forward(ctx, x, count):
        y = x * 2
        ctx.save_for_backward(x)

        def again(x):
            count.append(1)
            return x * 2

        recipes.remember(y, again, x)
        return y

    @staticmethod
    def backward(ctx, dy):
        return dy * 2, None


def squares(y):
    """An operator of PyTorch that keeps y."""
    return y * y


@pytest.fixture
def x():
    return torch.arange(6.0).view(2, 3).requires_grad_()


def test_gradients_are_the_same_and_every_user_shares_one_making(x):
    count = []
    with recipes.remembered() as book:
        y = Doubled.apply(x, count)
        loss = squares(y).sum() + (y[1:] ** 3).sum() + (y.view(3, 2).T * y.view(3, 2).T).sum()
        [recipe] = book.recipes.values()
    assert recipe.users == 5 and not count
    loss.backward()
    assert len(count) == 1 and recipe.made is None and recipe.asked == 0
    ours, x.grad = x.grad, None
    (squares(2 * x).sum() * 2 + ((2 * x)[1:] ** 3).sum()).backward()
    assert torch.equal(ours, x.grad)


def test_the_output_is_not_held(x):
    with recipes.remembered():
        y = Doubled.apply(x, [])
        loss = squares(y).sum()
        held = torch.multiprocessing.reductions.StorageWeakRef(y.untyped_storage())
    del y
    assert held.expired()
    loss.backward()
    assert torch.equal(x.grad, 8 * x.detach())


def test_a_graph_that_is_kept_can_be_gone_through_twice(x):
    count = []
    with recipes.remembered():
        loss = squares(Doubled.apply(x, count)).sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and len(count) == 2


def test_memory_that_is_used_again_is_not_taken_for_the_output():
    """An allocator hands the same address out again at once."""
    with recipes.remembered() as book:
        for _ in range(20):
            x = torch.randn(64, requires_grad=True)
            Doubled.apply(x, [])  # thrown away
            other = torch.randn(64, requires_grad=True)
            loss = squares(other + 0).sum()
            loss.backward()
            assert torch.equal(other.grad, 2 * other.detach())
        assert not any(recipe.users for recipe in book.recipes.values())


def test_an_output_that_was_changed_in_place_is_kept_itself(x):
    with recipes.remembered() as book:
        y = Doubled.apply(x, []).add_(1)
        loss = squares(y).sum()
        assert not any(recipe.users for recipe in book.recipes.values())
    loss.backward()
    assert torch.equal(x.grad, 2 * (2 * x.detach() + 1) * 2)


def test_an_input_that_was_changed_in_place_is_refused(x):
    with recipes.remembered():
        h = x + 0
        loss = squares(Doubled.apply(h, [])).sum()
    with torch.no_grad():
        h.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_what_is_no_part_is_kept_as_ever_and_lives_no_longer_than_its_graph(x):
    with recipes.remembered():
        y = x.exp()  # keeps its own output
        held = torch.multiprocessing.reductions.StorageWeakRef(y.untyped_storage())
        loss = y.sum()
    loss.backward()
    assert torch.equal(x.grad, x.detach().exp())
    del y, loss
    assert held.expired()


def test_outside_and_without_gradients_nothing_is_remembered(x):
    y = Doubled.apply(x, [])
    with torch.no_grad(), recipes.remembered() as book:
        Doubled.apply(x, [])
    assert not book.recipes and torch.equal(y, 2 * x)


def test_inside_a_checkpoint_the_checkpoint_decides(x):
    count = []
    with recipes.remembered() as book:
        loss = torch.utils.checkpoint.checkpoint(lambda x: squares(Doubled.apply(x, count)).sum(), x, use_reentrant=False)
        assert not any(recipe.users for recipe in book.recipes.values())
    loss.backward()
    assert torch.equal(x.grad, 8 * x.detach()) and not count
