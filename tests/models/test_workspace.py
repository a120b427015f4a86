"""A workspace is lent again when nobody holds its memory, and never before."""

import threading

import pytest
import torch

from tunesmith.models import workspace

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_lent():
    workspace.release()
    yield
    workspace.release()


def lent(*shape, dtype=torch.float32):
    return workspace.lend(shape, dtype, CPU)


def test_the_same_memory_is_lent_again():
    first = lent(4, 8)
    place = first.data_ptr()
    assert first.shape == (4, 8) and first.is_contiguous()
    del first
    again = lent(2, 3)
    assert again.data_ptr() == place and again.shape == (2, 3) and again.is_contiguous()
    assert workspace.held_bytes() == 4 * 32


HOLDERS = {
    "the tensor": lambda tensor: tensor,
    "a transposed view": lambda tensor: tensor.T,
    "a row": lambda tensor: tensor[1],
    "a detached one": lambda tensor: tensor.detach(),
    "a parameter": lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
    "what waits for a backward pass": lambda tensor: torch.ones(8, requires_grad=True) @ tensor.T,
}


@pytest.mark.parametrize("hold", HOLDERS)
def test_what_is_held_is_not_overwritten(hold):
    tensor = lent(4, 8)
    place = tensor.data_ptr()
    held = HOLDERS[hold](tensor)
    del tensor
    assert lent(4, 8).data_ptr() != place, hold
    del held
    assert lent(4, 8).data_ptr() == place, hold


def test_three_at_once_are_three():
    tensors = [lent(2, 4).fill_(number) for number in range(3)]
    assert torch.cat(tensors).unique().tolist() == [0, 1, 2]


def test_it_grows_to_the_largest_and_no_further():
    lent(2, 2)
    lent(10, 10)
    lent(3, 3)
    assert workspace.held_bytes() == 4 * 100


def test_growing_leaves_what_is_held_alone():
    small = lent(2, 2).fill_(7)
    big = lent(10, 10).fill_(1)
    assert small.unique().tolist() == [7] and big.unique().tolist() == [1]
    assert workspace.held_bytes() == 4 * 4, "what is lent beside a held workspace is not kept"


def test_each_dtype_has_its_own():
    one, other = lent(4), lent(4, dtype=torch.bfloat16)
    assert one.dtype == torch.float32 and other.dtype == torch.bfloat16
    assert workspace.held_bytes() == 16 + 8


def test_where_torch_does_not_count_holders_nothing_is_lent_twice(monkeypatch):
    monkeypatch.setattr(workspace, "_count", None)
    assert lent(4).fill_(1).tolist() == [1] * 4
    assert workspace.held_bytes() == 0


def test_released_memory_is_made_anew():
    held = lent(4).fill_(3)
    workspace.release()
    assert workspace.held_bytes() == 0
    assert lent(4).data_ptr() != held.data_ptr() and held.tolist() == [3] * 4


def test_threads_do_not_share_what_is_lent():
    wrong = []

    def use(number):
        for _ in range(200):
            tensor = lent(64).fill_(number)
            if tensor.ne(number).any():
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
