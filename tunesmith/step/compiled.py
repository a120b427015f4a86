"""`torch.compile` of a model's decoder blocks: each kind of block once, whatever the number of blocks and the lengths of rows.

What a compiler gives here is fewer passes over memory between the products. The attention stays what it is, between two compiled
halves of a block: it works on a Python description of the row's documents, which would otherwise be compiled anew for every row.

    block   │ norm, q k v, rotary ├── our attention ──┤ o, sum, norm, gate up down, sum │
                 compiled             as it is                   compiled

The number of tokens is a symbol in what is compiled. How many the first row has may still decide how loops are divided, and with that
last bits: the first row is that of the comparison at the start, the same whenever a run is begun or resumed. Rows without gradients
(evaluation) and very short ones go the plain way.
"""

import contextlib
import functools
import inspect
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from tunesmith.models import attention
from tunesmith.models.source import cache_folder
from tunesmith.step.shell import STANDS_FOR, Loan, shells

SHORTEST = 16  # tokens of a row; a compiler treats lengths 0 and 1 as special, and nothing is gained on a few
MOST = 8  # graphs of one kind of block: two, before its attention and behind it, and again where windows or what is trained differ
# What the decision goes by (benchmarks/compile.py measures it): seconds to compile, the share of a step that is saved, FLOP/s (of one
# thread on a CPU, in fp32). Constants, since a decision by the clock would not be the same twice.
SECONDS = {"cpu": 60.0, "cuda": 60.0}
SAVED = {"cpu": 0.05, "cuda": 0.10}
RATES = {"cpu": 50e9, "cuda": 3e14}
BF16_FASTER = 2.4
_COMPILERS = ("g++", "clang++", "c++", "icpx", "cl") if sys.platform == "win32" else ("g++", "clang++", "c++", "icpx")


@dataclass
class Compiled:
    """Decoder blocks that may be computed by compiled code: a switch, off at first.

    `graphs` counts what was compiled; beyond `MOST` for each kind of block something else than lengths must be making the compiler
    begin again. While it is being compared that is an error; in a run that has begun (`settled`) such a graph is computed as it is.
    """

    kinds: int
    compiler: str = "inductor"  # the name of a backend of torch's
    settled: bool = False
    graphs: int = 0
    is_on: bool = False

    def on(self) -> None:
        self.is_on = True

    def off(self) -> None:
        self.is_on = False

    def backend(self, graph: Any, inputs: Any, **options: Any) -> Any:
        """The compiler, with the graphs counted."""
        self.graphs += 1
        if self.graphs > MOST * self.kinds:
            if self.settled:
                return graph.forward
            raise TooManyGraphs(f"{self.graphs} graphs for {self.kinds} kinds of blocks")
        from torch._dynamo import lookup_backend

        with _quiet():
            return lookup_backend(self.compiler)(graph, inputs, **options)


class TooManyGraphs(RuntimeError):
    """The compiler begins again and again: something in the blocks changes with every row."""


def pays(flops: float, device: torch.device, dtype: torch.dtype, threads: int) -> bool:
    """Whether a run of so many floating-point operations gains more by compiled blocks than it takes to compile them."""
    rate = RATES[device.type] if device.type != "cpu" else RATES["cpu"] * threads * (BF16_FASTER if dtype == torch.bfloat16 else 1)
    return SAVED[device.type] * flops / rate > SECONDS[device.type]


def impossible(device: torch.device) -> str:
    """Why nothing can be compiled on this machine; empty where it can."""
    if device.type == "cuda":
        from importlib.util import find_spec

        return "" if find_spec("triton") else "torch compiles for a GPU by triton, which is not installed"
    if device.type != "cpu":
        return f"not proved on {device.type}"
    named = os.environ.get("CXX", "")
    if not any(shutil.which(name) for name in (named, *_COMPILERS) if name):
        return f"no C++ compiler on this machine ({' '.join(_COMPILERS)}), which torch needs to compile for a CPU"
    return ""


def place(model: Any, compiler: str = "inductor") -> Compiled:
    """Put the switch into every decoder block, inside of what recomputes a block. Raises LookupError where a block cannot have one."""
    found = shells(model)
    if not found:
        raise LookupError("no repeated blocks")
    compiled = Compiled(kinds=len({id(loan.shell) for _, loan in found}), compiler=compiler)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    run = torch.compile(_run, backend=compiled.backend, dynamic=True)
    for block, loan in found:
        object.__setattr__(block, "forward", _Switch(compiled, run, block.forward, loan, _named(block)))
    return compiled


def _run(block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return block(*inputs, **named)


@dataclass(slots=True)
class _Switch:
    """The forward of one block. Arguments that the block itself does not name are the attention's, and reach it past the compiler."""

    compiled: Compiled
    run: Callable[..., Any]
    plain: Callable[..., Any]
    loan: Loan
    names: frozenset[str]

    def __call__(self, h_BTC: Tensor, *inputs: Any, **named: Any) -> Any:
        tokens = h_BTC.shape[1]
        if not self.compiled.is_on or not torch.is_grad_enabled() or tokens < SHORTEST:
            return self.plain(h_BTC, *inputs, **named)
        if not h_BTC.requires_grad:  # the first block would be compiled once more for its input alone
            h_BTC = h_BTC.detach().requires_grad_()
        own = {name: value for name, value in named.items() if name in self.names}
        _mark((h_BTC, inputs, own), tokens)
        with _settings(), _passing({name: value for name, value in named.items() if name not in self.names}):
            return self.run(self.loan.lend(), (h_BTC, *inputs), own)


def _named(block: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(type(block).forward).parameters)


def _mark(values: Any, tokens: int) -> None:
    """Tell the compiler that a dimension of this length is one among many."""
    if isinstance(values, Tensor):
        at = values.shape.index(tokens) if tokens in values.shape else None
        for dimension in range(values.ndim):
            (torch._dynamo.mark_dynamic if dimension == at else torch._dynamo.mark_static)(values, dimension)
    elif isinstance(values, dict):
        for value in values.values():
            _mark(value, tokens)
    elif isinstance(values, tuple | list):
        for value in values:
            _mark(value, tokens)


# --- the attention, called from between two compiled pieces ---

_PASSED: list[dict[str, Any]] = [{}]


@contextlib.contextmanager
def _passing(named: dict[str, Any]) -> Iterator[None]:
    """What the attention is told past the compiler; that it stands between two compiled pieces holds for this one block alone."""
    _PASSED.append(named)
    AttentionInterface.register(attention.NAME, _uncompiled())
    try:
        yield
    finally:
        AttentionInterface.register(attention.NAME, attention.packed_attention)
        _PASSED.pop()


@functools.cache  # one object, or the compiler would begin again; made late, since it imports the compiler
def _uncompiled() -> Callable[..., Any]:
    return torch.compiler.disable(_attention)


def _attention(module: nn.Module, *tensors: Any, **named: Any) -> Any:
    """Our attention, told of the module that the shell stands for and of what was kept from the compiler."""
    out_BTHE, *others = attention.packed_attention(vars(module).get(STANDS_FOR, module), *tensors, **(named | _PASSED[-1]))
    _mark(out_BTHE, out_BTHE.shape[1])
    return out_BTHE, *others


# --- settings of the compiler ---


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """One graph on each side of the attention; numbers of a class, such as an epsilon, are constants; dropout draws what it draws
    without a compiler."""
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    ours: dict[str, Any] = dict(nested_graph_breaks=True, specialize_float=True, recompile_limit=64)
    with warnings.catch_warnings(), dynamo.patch(**ours), inductor.patch(fallback_random=True, compile_threads=1):
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
