"""Tensors on the host: what comes back is what was put, and no copy is relied on before it has been waited for."""

import gc
import weakref

import torch

from tunesmith.step.host_store import IN_FLIGHT, HostStore


class LateCopies:
    """Copies that happen only when somebody waits for them, as the worst of devices would have it."""

    def __init__(self):
        self.queued, self.buffers, self.sent_for = [], 0, []

    def buffer(self, like):
        self.buffers += 1
        return torch.full_like(like, 77)

    def out(self, source, host):
        assert source.data_ptr(), "what is copied has been freed"
        return self._queue(lambda: host.copy_(source))

    def back(self, host, device):
        target = torch.full_like(host, 77)
        self.sent_for.append(host)
        return target, self._queue(lambda: target.copy_(host))

    def _queue(self, work):
        self.queued.append(work)
        return len(self.queued)

    def wait(self, event):
        """A stream does one thing after the other: everything up to the event."""
        for i in range(event):
            self.queued[i]()
            self.queued[i] = lambda: None

    def finish(self):
        self.wait(len(self.queued))


def drawn(count=6, size=5):
    torch.manual_seed(0)
    return [torch.randn(size) for _ in range(count)]


def test_last_in_first_out_is_what_was_put():
    store = HostStore(LateCopies())
    for _ in range(3):
        tensors = drawn()
        lent = [store.put(tensor.clone()) for tensor in tensors]
        for tensor, each in reversed(list(zip(tensors, lent, strict=True))):
            assert torch.equal(store.get(each), tensor)


def test_another_order_and_getting_twice_is_right_too():
    store, tensors = HostStore(LateCopies()), drawn(4)
    lent = [store.put(tensor.clone()) for tensor in tensors]
    for i in (1, 3, 3, 0, 2):
        assert torch.equal(store.get(lent[i]), tensors[i])


def test_only_a_few_sources_are_held_while_they_leave():
    store, held = HostStore(LateCopies()), []
    kept = []
    for tensor in drawn(8):
        copy = tensor.clone()
        held.append(weakref.ref(copy.untyped_storage()))
        kept.append(store.put(copy))
        del copy
    gc.collect()
    assert len(store._leaving) == IN_FLIGHT and len(kept) == 8


def test_the_one_before_is_on_its_way_while_one_is_used():
    copies = LateCopies()
    store = HostStore(copies)
    lent = [store.put(tensor) for tensor in drawn(4)]
    store.get(lent[3])
    assert [host is each.host for host, each in zip(copies.sent_for, (lent[3], lent[2]), strict=True)] == [True, True]
    store.get(lent[2])
    assert copies.sent_for[-1] is lent[1].host and len(copies.sent_for) == 3, "it is sent for once"


def test_host_buffers_are_used_again_from_row_to_row():
    copies = LateCopies()
    store = HostStore(copies)
    for _ in range(5):
        lent = [store.put(tensor) for tensor in drawn()]
        for each in reversed(lent):
            store.get(each)
        del each, lent
    assert copies.buffers == 6


def test_what_is_sent_for_and_never_used_is_waited_for():
    """Its memory would be used again while the copy still writes into it."""
    copies = LateCopies()
    store = HostStore(copies)
    lent = [store.put(tensor) for tensor in drawn(2)]
    store.get(lent[1])  # the other is on its way now
    landed = []
    copies.queued[-1] = lambda: landed.append(True)
    del lent
    gc.collect()
    assert landed and len(store._free[(torch.Size([5]), torch.float32)]) == 2
