"""A row's forward and backward pass through the decoder as two recorded graphs, replayed for every row: two launches for thousands.

What is replayed reads and writes where the recording did. So a row is copied into buffers of a fixed size, a bucket: its ids, its
positions, and where its documents begin. What is missing to the bucket are documents that nobody learns from; attention keeps documents
apart and no gradient comes to these, so that the row's own numbers are what they were. Between the two graphs stands the loss, computed
as it always is, since its learned positions are another number for each row.

    ids, positions, starts ──► forward graph ──► hidden states ──► loss ──► their gradient ──► backward graph ──► sums of gradients
          copied in                                        as it is            copied in                          += in the graph

Rows that fit no bucket, rows that share beginnings, and rows without gradients (evaluation) go the plain way; which of them a row
goes depends on the row alone.

Shapes: T tokens of a bucket, S its documents, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.data.corpus.batches import Row
from tunesmith.models import workspace
from tunesmith.models.attention_cuda import Offsets
from tunesmith.models.forest import forest_of, positions
from tunesmith.step.buckets import Bucket

NAME = "CUDA graphs"
# Methods whose passes do the same work in the same place for every row. DoRA keeps norms by a tensor's version, which a replay does not
# change; prompts look up on the host where placeholders stand.
METHODS = ("lora", "pissa", "adapter", "full", "freeze", "prefix", "ptuning_v2")
LARGEST = 3_000_000_000  # parameters: of a larger model the products take longer than their launches
WARM_UPS = 3  # passes before a recording: libraries choose their kernels, ours are compiled, what is made once is made


class Recorder(Protocol):
    """What makes a recording of a function without arguments and results, which reads and writes buffers."""

    @property
    def reads_python(self) -> bool:
        """A replay runs Python anew, so that what Python knows of the row must be the row's."""
        ...

    def warm_up(self, function: Callable[[], Any]) -> None:
        """Run it as often as is needed before it can be recorded."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """What does the same again. Nothing is computed while it is recorded."""


@dataclass(frozen=True, slots=True)
class Again:
    """No recording: the function is called again. Everything but the recording itself is the same on every machine."""

    reads_python: bool = True

    def warm_up(self, function: Callable[[], Any]) -> None:
        function()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        return function


class Cuda:
    """CUDA graphs, which take their memory from one pool: they are replayed one after another, so they may use the same."""

    reads_python = False

    def __init__(self, device: torch.device):
        self.device, self.pool = device, torch.cuda.graph_pool_handle()
        # Two streams, neither the usual one: the workspace of each stream is its own, and the recordings' has to lie in their pool.
        self.side, self.recording = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], Any]) -> None:
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            for _ in range(WARM_UPS):
                function()
        torch.cuda.current_stream(self.device).wait_stream(self.side)

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # other threads (of the memory sampler, say) may go on asking the driver
        with torch.cuda.graph(graph, pool=self.pool, stream=self.recording, capture_error_mode="thread_local"):
            function()
        replay: Callable[[], None] = graph.replay
        return replay


@dataclass(eq=False)
class Recording:
    """One bucket: buffers, and the two graphs between them."""

    bucket: Bucket
    ids_1T: Tensor
    arguments: dict[str, Any]
    h_TC: Tensor
    dh_TC: Tensor
    forward: Callable[[], None] = lambda: None
    backward: Callable[[], None] = lambda: None
    computed_TC: Tensor | None = None  # with the graph of autograd, from a forward pass to its backward pass


@dataclass(eq=False)
class Graphs:
    """The decoder's passes as recordings: a switch, off at first.

    While it is being compared, gradients are handed to autograd; once it is `settled` they are added up in buffers that are the
    trained tensors' `.grad`, without one launch for each.
    """

    decoder: Any
    first: int  # the position of a document's first token
    parameters: Mapping[str, Tensor]
    buckets: tuple[Bucket, ...]
    recorder: Recorder
    settled: bool = False
    recordings: list[Recording] = field(default_factory=list)  # the smallest first
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the gradients of those tensors that the decoder's passes reach
    turn: int = 0

    def on(self) -> None:
        """Record everything now, the largest first: a run does not find out half-way that there is no room."""
        for bucket in self.buckets:
            self.recordings.insert(0, self._recorded(bucket))

    def off(self) -> None:
        self.recordings.clear()
        self.sums.clear()
        workspace.release()  # the recordings' stretch lies in their pool

    def __call__(self, row: Row) -> Tensor | None:
        """Hidden states of a row and its padding, [T, C], or None where the row has to go the plain way."""
        if not torch.is_grad_enabled() or row.parents or row.behind:
            return None
        for one in self.recordings:
            if (padding := one.bucket.padding(row.lengths)) is not None:
                self._fill(one, row.ids_T, (*row.lengths, *padding))
                self.turn += 1
                trained = [self.parameters[name] for name in self.sums]
                found: Tensor = _Replayed.apply(self, one, self.turn, *(trained[:1] if self.settled else trained))
                return found
        return None

    def _recorded(self, bucket: Bucket) -> Recording:
        device, lengths = next(iter(self.parameters.values())).device, bucket.layout()
        ids_1T = torch.zeros(1, bucket.tokens, dtype=torch.int64, device=device)
        positions_1T, starts = ids_1T.clone(), torch.zeros(bucket.documents + 1, dtype=torch.int32, device=device)
        arguments: dict[str, Any] = {
            "position_ids": positions_1T, "cu_seq_lens_q": starts, "cu_seq_lens_k": starts,
            "max_length_q": bucket.longest, "max_length_k": bucket.longest, "forest": (forest := forest_of(lengths)),
        }  # fmt: skip
        forest.once(("segments", ids_1T.device), lambda: Offsets(starts, starts, bucket.longest, bucket.longest))
        nothing = ids_1T.new_zeros(0)
        one = Recording(bucket, ids_1T, arguments, nothing, nothing)
        self._fill(one, ids_1T[0, :0].cpu(), lengths)
        self.recorder.warm_up(lambda: self._once(one))
        one.forward = self.recorder.record(lambda: self._forward(one))
        one.backward = self.recorder.record(lambda: self._backward(one))
        one.computed_TC = None
        return one

    def _once(self, one: Recording) -> None:
        """Both passes, with what they need made: buffers, and sums of what turns out to have a gradient."""
        h_TC = self._hidden(one)
        if one.h_TC.numel() == 0:
            one.h_TC, one.dh_TC = torch.zeros_like(h_TC, requires_grad=False), torch.zeros_like(h_TC, requires_grad=False)
        trained = {name: tensor for name, tensor in self.parameters.items() if tensor.requires_grad}
        found = torch.autograd.grad(h_TC, list(trained.values()), one.dh_TC, allow_unused=True)
        if not self.sums:
            reached = (name for name, gradient in zip(trained, found, strict=True) if gradient is not None)
            self.sums.update({name: torch.zeros_like(trained[name], requires_grad=False) for name in reached})

    def _hidden(self, one: Recording) -> Tensor:
        with torch.enable_grad():
            hidden: Tensor = self.decoder(input_ids=one.ids_1T, use_cache=False, **one.arguments).last_hidden_state[0]
        return hidden

    def _forward(self, one: Recording) -> None:
        one.computed_TC = self._hidden(one)
        with torch.no_grad():
            one.h_TC.copy_(one.computed_TC)

    def _backward(self, one: Recording) -> None:
        assert one.computed_TC is not None, "a backward pass follows a forward pass"
        found = torch.autograd.grad(one.computed_TC, [self.parameters[name] for name in self.sums], one.dh_TC)
        one.computed_TC = None
        with torch.no_grad():
            torch._foreach_add_(list(self.sums.values()), list(found))

    def _fill(self, one: Recording, ids_T: Tensor, lengths: tuple[int, ...]) -> None:
        """A row into the buffers. Token 0 stands in the padding: which one, nobody sees."""
        forest = forest_of(lengths)
        padded_T = torch.nn.functional.pad(ids_T, (0, one.bucket.tokens - len(ids_T)))
        one.ids_1T.copy_(padded_T[None], non_blocking=True)
        one.arguments["position_ids"].copy_(positions(forest, self.first)[None], non_blocking=True)
        one.arguments["cu_seq_lens_q"].copy_(torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32), non_blocking=True)
        if self.recorder.reads_python:
            one.arguments["forest"] = forest

    def gathered(self, one: Recording) -> Sequence[Tensor | None]:
        """A backward pass: gradients for autograd, or none, since they have been added up where they belong."""
        sums = list(self.sums.values())
        if self.settled:
            self._claim()
            one.backward()
            return [None]
        torch._foreach_zero_(sums)
        one.backward()
        return [each.clone() for each in sums]

    def _claim(self) -> None:
        """Let the sums be the tensors' gradients. What an optimizer has dropped begins at 0; what the plain way has made is kept."""
        dropped = [sum_ for name, sum_ in self.sums.items() if self.parameters[name].grad is None]
        if dropped:
            torch._foreach_zero_(dropped)
        for name, sum_ in self.sums.items():
            parameter = self.parameters[name]
            if parameter.grad is not None and parameter.grad is not sum_:
                sum_.copy_(parameter.grad)
            parameter.grad = sum_


class _Replayed(torch.autograd.Function):
    """The two graphs as one operator of autograd's. It has the trained tensors for inputs, lest the backward pass be left out."""

    @staticmethod
    def forward(ctx: Any, graphs: Graphs, one: Recording, turn: int, *trained: Tensor) -> Tensor:
        ctx.graphs, ctx.one, ctx.turn = graphs, one, turn
        one.forward()
        return one.h_TC.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh_TC: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.turn == ctx.graphs.turn, "a row's backward pass comes before the next row's forward pass: they use the same memory"
        ctx.one.dh_TC.copy_(dh_TC)
        return None, None, None, *ctx.graphs.gathered(ctx.one)


def recorder(device: torch.device) -> Recorder:
    """What records on this device."""
    return Cuda(device) if device.type == "cuda" else Again()


def impossible(device: torch.device) -> str:
    """Why this device has no such graphs; empty where it has."""
    return (
        ""
        if device.type == "cuda"
        else f"launches are recorded on an NVIDIA GPU, and the run is on {device.type}, where nothing is launched"
    )
