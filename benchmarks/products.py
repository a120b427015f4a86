"""Low-rank updates in one decoder block: plain operators, one function a layer, and q k v, gate and up together.

    python benchmarks/products.py                     seconds of forward and backward of SmolLM2's block at 64, 256 and 1,024 tokens
    python benchmarks/products.py --nf4 --tokens 1024 --hidden 2048 --intermediate 8192 --heads 32 --key-value-heads 8
    python benchmarks/products.py --narrow            the products with a side of `--rank`, in both orientations

Prints tables and writes nothing. The ways are interleaved in one process and follow each other in turn; a figure is the median, and
beside it stands the share of a block without any update, whose gradient of x alone is computed: what an update costs at least.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.methods import lora, method
from tunesmith.methods.settings import LoRA
from tunesmith.methods.tuning import Start
from tunesmith.models import nf4, slots, together
from tunesmith.models.load import quiet

WAYS = ("frozen", "plain", "alone", "together")


def model_of(asked: argparse.Namespace) -> Any:
    """One block of random weights, frozen."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=asked.hidden,
        intermediate_size=asked.intermediate,
        num_hidden_layers=1,
        num_attention_heads=asked.heads,
        num_key_value_heads=asked.key_value_heads,
    )
    torch.manual_seed(0)
    with quiet():
        model = LlamaForCausalLM(config).to(asked.device, getattr(torch, asked.dtype)).requires_grad_(False).eval()
    for place in slots.linears(model) if asked.nf4 else []:
        linear: Any = model.get_submodule(place.path)
        layer = nf4.Nf4Linear(place.in_features, place.out_features, False, True, linear.weight.dtype)
        layer.exchange(nf4.quantize(linear.weight, True))
        model.set_submodule(place.path, layer)
    return model


def tuned(model: Any, way: str, rank: int) -> list[Tensor]:
    """The updates in their places, computed in one of the ways; what is trained."""
    if way == "frozen":
        return []
    settings = LoRA(rank=rank)
    tuning = lora.build(model, settings, model.device)
    lora.init(tuning, Start(model, None, 0, lambda path: torch.empty(0)), settings)
    method.place(model, tuning)
    modules: Any = tuning.adapter
    together.plainly(modules.values(), way == "plain")
    if way == "alone":
        slots.lift(model, tuning.adapter)
        kept, slots._same_input = slots._same_input, lambda model, adapter: iter(())  # type: ignore[assignment]
        method.place(model, tuning)
        slots._same_input = kept
    return list(tuning.parameters.values())


def step(model: Any, tokens: int, trained: list[Tensor]) -> Callable[[], None]:
    """Forward and backward of the block on a row of one document, its input's gradient included."""
    block = slots.blocks(model)[0][1]
    torch.manual_seed(1)
    x = torch.randn(1, tokens, model.config.hidden_size, device=model.device, dtype=model.dtype, requires_grad=True)
    angles = model.model.rotary_emb(x, torch.arange(tokens, device=x.device)[None])
    direction = torch.randn_like(x)

    def once() -> None:
        output = block(x, position_embeddings=angles, attention_mask=None)
        torch.autograd.grad(output[0] if isinstance(output, tuple) else output, [x, *trained], direction)

    return once


def seconds(ways: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    """The median of each, in turn."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 2):
        for way, once in ways.items():
            _wait(device)
            begun = time.perf_counter()
            once()
            _wait(device)
            if number >= 2:
                times[way].append(time.perf_counter() - begun)
    return {way: statistics.median(each) for way, each in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def blocks(asked: argparse.Namespace) -> None:
    device = torch.device(asked.device)
    print(f"{'tokens':>8}" + "".join(f"{way:>22}" for way in WAYS))
    for tokens in asked.tokens:
        ways: dict[str, Callable[[], None]] = {}
        for way in WAYS:
            model = model_of(asked)
            ways[way] = step(model, tokens, tuned(model, way, asked.rank))
        found = seconds(ways, asked.rounds, device)
        print(f"{tokens:8}" + "".join(f"{found[way] * 1e3:10.2f} ms ({found[way] / found['frozen']:.3f})" for way in WAYS))


def narrow(asked: argparse.Namespace) -> None:
    """Each product of an update as it is written down, and as its transpose."""
    device, dtype, rank = torch.device(asked.device), getattr(torch, asked.dtype), asked.rank
    for tokens in asked.tokens:
        for inner, out in ((asked.hidden, asked.intermediate), (asked.intermediate, asked.hidden)):
            x, dy = (torch.randn(tokens, width, device=device, dtype=dtype) for width in (inner, out))
            A, B, p = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((rank, inner), (out, rank), (tokens, rank)))
            pt = p.T.contiguous()
            pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
                "P = X.AT": (lambda x=x, A=A: x @ A.T, lambda x=x, A=A: A @ x.T),  # type: ignore[misc]
                "Q = dY.B": (lambda dy=dy, B=B: dy @ B, lambda dy=dy, B=B: B.T @ dy.T),  # type: ignore[misc]
                "dB = dYT.P": (lambda dy=dy, p=p: dy.T @ p, lambda dy=dy, pt=pt: pt @ dy),  # type: ignore[misc]
                "dA = QT.X": (lambda x=x, p=p: p.T @ x, lambda x=x, pt=pt: pt @ x),  # type: ignore[misc]
            }
            print(f"{tokens} tokens, {inner} to {out}, rank {rank}")
            for name, (across, along) in pairs.items():
                found = seconds({"across": across, "along": along}, asked.rounds, device)
                ratio = found["across"] / found["along"]
                print(f"  {name:12}{found['across'] * 1e3:9.3f} ms  transposed {found['along'] * 1e3:9.3f} ms  {ratio:5.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--intermediate", type=int, default=1536)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--key-value-heads", type=int, default=3)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--narrow", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    (narrow if asked.narrow else blocks)(asked)


if __name__ == "__main__":
    main()
