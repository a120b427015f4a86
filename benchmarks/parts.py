"""Norms, gated products and rotary embeddings: the classes' own against ours, in one block and in the whole model.

    python benchmarks/parts.py                      traffic, bytes kept and seconds of a LoRA row of SmolLM2-135M-Instruct
    python benchmarks/parts.py --tokens 256 --rounds 3 --random     one block of the same shape with random weights, no model needed

Prints a table and writes nothing. Three ways are interleaved in one process: `plain`, `parts`, and `elementwise`, which is parts with
`train.recompute=elementwise`. Traffic is counted, not timed: the bytes that operators other than matrix products and attention read
and write, in tensors of tokens x channels for each block; views are free, and what is expanded counts once.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunesmith import hardware
from tunesmith.data.corpus.batches import Row
from tunesmith.methods import method
from tunesmith.methods.settings import LoRA
from tunesmith.methods.tuning import Start
from tunesmith.models import load, slots
from tunesmith.models.parts import recipes, standing
from tunesmith.models.proof import Proof
from tunesmith.models.source import locate
from tunesmith.step.forward import Forward, prepare

NOT_COUNTED = ("mm", "addmm", "bmm", "baddbmm", "attention", "embedding", "softmax")  # of operators' names
FREE = (
    "view",
    "transpose",
    "expand",
    "slice",
    "unsqueeze",
    "squeeze",
    "detach",
    "split",
    "as_strided",
    "select",
    "permute",
    "t",
    "empty",
    "unsafe",
    "new",
)


class Traffic(TorchDispatchMode):
    """Counts the bytes that element-wise operators and reductions go over."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.strip("_")
        words = name.split("_")
        if not (name in FREE or words[0] in FREE or any(word in NOT_COUNTED or word.endswith("mm") for word in words)):
            self.bytes += sum(_bytes(one) for one in tree_leaves((args, kwargs, output)) if isinstance(one, Tensor))
        return output


def _bytes(tensor: Tensor) -> int:
    """Of the tensor's own values: what an expansion repeats is read from cache."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


@contextmanager
def kept() -> Iterator[dict[int, int]]:
    """Bytes of the storages that a forward pass keeps for its backward pass, by storage."""
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            found[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor.detach()

    alive: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--random", action="store_true", help="one block of random weights in its shape")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=hardware.physical_cores())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    forward, parameters = prepared(arguments)
    row = made_row(arguments.tokens, forward.model.config.vocab_size)
    blocks, channels = len(slots.blocks(forward.model)), forward.model.config.hidden_size
    tensor = arguments.tokens * channels * getattr(torch, arguments.dtype).itemsize
    found = standing.recognised(forward.model, getattr(torch, arguments.dtype))
    print(f"{blocks} blocks, {channels} channels, {arguments.tokens} tokens in {arguments.dtype} on {arguments.device}; stand in: ")
    print("  " + ", ".join(f"{len(forwards)} x {part}" for part, forwards in found.items()))

    @contextmanager
    def parts() -> Iterator[None]:
        for forwards in found.values():
            standing.stand(forward.model, forwards)
        try:
            yield
        finally:
            for forwards in found.values():
                standing.step_aside(forward.model, forwards)

    @contextmanager
    def elementwise() -> Iterator[None]:
        with parts():
            yield

    ways: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "plain": (nullcontext, nullcontext),
        "parts": (parts, nullcontext),
        "elementwise": (elementwise, recipes.remembered),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways:
        step(forward, row, parameters, *ways[way])  # warm
    for _ in range(arguments.rounds):
        for way in ways:
            seconds[way].append(step(forward, row, parameters, *ways[way]))
    print(f"{'':12} {'traffic':>8} {'kept':>8} {'seconds':>9} {'least':>9}   (traffic and kept: tensors of tokens x channels a block)")
    for way, (around, remember) in ways.items():
        with around(), Traffic() as traffic:
            step(forward, row, parameters, nullcontext, remember)
        size = kept_bytes(forward, row, around, remember)
        median, least = statistics.median(seconds[way]), min(seconds[way])
        print(f"{way:12} {traffic.bytes / tensor / blocks:8.1f} {size / tensor / blocks:8.2f} {median:9.4f} {least:9.4f}")


def kept_bytes(forward: Forward, row: Row, around: Callable[..., Any], remember: Callable[..., Any]) -> int:
    """What is kept; with recipes the outputs that they stand for are taken off, since hooks do not see each other."""
    with around(), kept() as found:
        forward.loss(row)
        total = sum(found.values())
    with around(), remember() as book:
        forward.loss(row)
        return total - (sum(recipe.bytes for recipe in book.recipes.values() if recipe.users) if book else 0)


def step(forward: Forward, row: Row, parameters: dict[str, Tensor], around: Callable[..., Any], remember: Callable[..., Any]) -> float:
    """Seconds of one row, forward and backward."""
    for parameter in parameters.values():
        parameter.grad = None
    with around():
        waited(forward)
        begun = time.perf_counter()
        with remember():
            loss = forward.loss(row)
        loss.backward()
        waited(forward)
        return time.perf_counter() - begun


def waited(forward: Forward) -> None:
    if forward.model.device.type == "cuda":
        torch.cuda.synchronize()


def prepared(arguments: argparse.Namespace) -> tuple[Forward, dict[str, Any]]:
    """The model with LoRA at every linear layer, and what is trained."""
    dtype, folder = getattr(torch, arguments.dtype), locate(arguments.model).folder
    if arguments.random:
        config = load.load_config(folder)
        config.num_hidden_layers, config.vocab_size = 1, 512
        config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
        torch.manual_seed(0)
        model = load.AutoModelForCausalLM.from_config(config, dtype=dtype).to(arguments.device).eval()
    else:
        model = load.load(folder, dtype=dtype, device=arguments.device).model
    tuning = method.build(model, LoRA(), quantized=False, device=model.device)
    method.begin(tuning, Start(model, None, 0, lambda path: model.get_submodule(path).weight), LoRA())
    method.place(model, tuning)
    return prepare(model, Proof(True, True, ()), "sdpa"), dict(tuning.parameters)


def made_row(tokens: int, vocabulary: int) -> Row:
    """Documents of 128 tokens, every second half of one learned."""
    generator = torch.Generator().manual_seed(0)
    ids_T = torch.randint(vocabulary, (tokens,), generator=generator)
    lengths = tuple(min(128, tokens - begin) for begin in range(0, tokens, 128))
    hidden_N = torch.tensor([at for at in range(tokens - 1) if at % 128 >= 64 and (at + 1) % 128])
    return Row(ids_T, lengths, tuple(range(len(lengths))), hidden_N, ids_T[hidden_N + 1], tokens, tokens)


if __name__ == "__main__":
    main()
