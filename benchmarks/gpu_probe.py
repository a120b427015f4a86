"""Eight measurements of one NVIDIA GPU, from which the ways to make training fast on it can be ranked.

    python benchmarks/gpu_probe.py --seconds 150          into results/gpu_probe.json; goes on where it stopped
    python benchmarks/gpu_probe.py --again attention,nf4

1 gemm       matrix products at an 8B model's shapes: bfloat16 in both orientations, with 48 more columns, and 8-bit floating point
2 attention  forward and backward per document: varlen flash, cuDNN per document, flex, for documents of 512, 4k and 32k tokens
3 nf4        NF4 to bfloat16 in GB/s of what is written: our kernel, bitsandbytes
4 experts    grouped products at a mixture of 128 experts, contiguous weights and a transposed view, and whether they agree
5 skinny     rank-16 products beside a wide one
6 loss       head and cross entropy in chunks of 1k, 2k and 4k rows, 128k and 152k words
7 peft       one llama block stack with peft around it: tokens a second of the plain loop
8 launch     a SmolLM2-135M step eagerly and as a CUDA graph

A probe that this card, torch or driver cannot do is written down with its error. Nothing here needs a model or the network.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from measure import RESULTS, write
from torch import Tensor

from tunesmith import hardware

Results = Iterator[tuple[str, float]]
LAYERS = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}  # (out, in) of an 8B model
REPEATS = 10


def seconds_of(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median device seconds of a call, after two to warm up."""
    for _ in range(2):
        call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return sorted(times)[len(times) // 2]


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def gemm() -> Results:
    for tokens in (4096, 16384):
        for name, (o, i) in LAYERS.items():
            x_TI, dy_TO, w_OI, wide_OI = drawn(tokens, i), drawn(tokens, o), drawn(o, i), drawn(o + 48, i)
            teraflop = 2.0 * tokens * o * i / 1e12
            yield f"{name}, {tokens} rows, forward", teraflop / seconds_of(lambda x=x_TI, w=w_OI: x @ w.T)
            yield f"{name}, {tokens} rows, to the input", teraflop / seconds_of(lambda dy=dy_TO, w=w_OI: dy @ w)
            yield f"{name}, {tokens} rows, forward, 48 more columns", teraflop / seconds_of(lambda x=x_TI, w=wide_OI: x @ w.T)
            for scaling in ("rowwise", "tensorwise"):
                yield f"{name}, {tokens} rows, forward, fp8 {scaling}", teraflop / seconds_of(scaled(x_TI, w_OI, scaling == "rowwise"))


def scaled(x_TI: Tensor, w_OI: Tensor, rowwise: bool) -> Callable[[], Tensor]:
    """The product in e4m3, both sides already rounded."""
    one = torch.tensor(1.0, device="cuda")
    x8_TI, w8_OI = x_TI.to(torch.float8_e4m3fn), w_OI.to(torch.float8_e4m3fn)
    scale_x = torch.ones(len(x_TI), 1, device="cuda") if rowwise else one
    scale_w = torch.ones(1, len(w_OI), device="cuda") if rowwise else one
    return lambda: torch._scaled_mm(x8_TI, w8_OI.T, scale_x, scale_w, out_dtype=torch.bfloat16, use_fast_accum=True)


def attention() -> Results:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.attention.varlen import varlen_attn

    heads, few, size = 32, 8, 128
    compiled = torch.compile(flex_attention, dynamic=False)
    for length in (512, 4096, 32768):
        count = max(1, 32768 // length)
        total = length * count
        teraflop = 3.5 * count * 4.0 * heads * size * length * length / 2 / 1e12  # forward, and two and a half times that back
        q_THE, k_TKE, v_TKE = (drawn(total, each, size).requires_grad_() for each in (heads, few, few))
        starts = torch.arange(0, total + 1, length, device="cuda", dtype=torch.int32)

        def varlen(q: Tensor = q_THE, k: Tensor = k_TKE, v: Tensor = v_TKE, at: Tensor = starts, longest: int = length) -> Tensor:
            found = varlen_attn(q, k, v, at, at, longest, longest, window_size=(-1, 0), enable_gqa=True)
            assert isinstance(found, Tensor)
            return found

        def batched(q: Tensor = q_THE, k: Tensor = k_TKE, v: Tensor = v_TKE, n: int = length) -> Tensor:
            heads_first = [each.unflatten(0, (-1, n)).transpose(1, 2) for each in (q, k, v)]
            return F.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True)

        inputs = [q_THE, k_TKE, v_TKE]
        yield from tried(f"varlen flash, documents of {length}", teraflop, both_ways(varlen, inputs))
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            with sdpa_kernel(backend):
                name = f"{backend.name.lower()} in batches, documents of {length}"
                yield from tried(name, teraflop, both_ways(batched, inputs))
        documents_T = torch.arange(total, device="cuda") // length

        def same(batch: Tensor, head: Tensor, query: Tensor, key: Tensor, at: Tensor = documents_T) -> Tensor:
            return (query >= key) & (at[query] == at[key])

        mask = create_block_mask(same, None, None, total, total, device="cuda")

        def flex(q: Tensor = q_THE, k: Tensor = k_TKE, v: Tensor = v_TKE, mask: Any = mask) -> Tensor:
            return compiled(*(each.transpose(0, 1)[None] for each in (q, k, v)), block_mask=mask, enable_gqa=True)

        yield from tried(f"flex, documents of {length}", teraflop, both_ways(flex, inputs))


def both_ways(call: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], Any]:
    """Forward, and back to the inputs; nothing is added up."""

    def step() -> None:
        found = call()
        torch.autograd.grad(found, inputs, torch.ones_like(found))

    return step


def tried(name: str, amount: float, call: Callable[[], Any]) -> Results:
    """`amount` a second, or NaN where this card or torch cannot do it."""
    try:
        yield name, amount / seconds_of(call, 5)
    except Exception as error:
        yield f"{name}: {str(error).splitlines()[0][:120]}", math.nan


def nf4() -> Results:
    from bitsandbytes import functional

    from tunesmith.models import nf4 as ours

    for name, (o, i) in LAYERS.items():
        weight_OI, written = drawn(o, i), o * i * 2 / 1e9
        quantized = ours.quantize(weight_OI, True)
        yield from tried(f"{name}, ours", written, partial(ours.dequantize, quantized, (o, i), torch.bfloat16))
        codes, state = functional.quantize_4bit(weight_OI, quant_type="nf4", compress_statistics=True)
        yield f"{name}, bitsandbytes", written / seconds_of(lambda c=codes, s=state: functional.dequantize_4bit(c, s))


def experts() -> Results:
    count, inner, width = 128, 768, 2048
    for rows in (256, 512, 1024, 2048):
        x_TI, w_EOI = drawn(rows * count, width), drawn(count, 2 * inner, width)
        ends_E = (torch.arange(1, count + 1, device="cuda") * rows).to(torch.int32)
        teraflop = 2.0 * len(x_TI) * width * 2 * inner / 1e12
        stored = w_EOI.transpose(1, 2).contiguous()
        yield (
            f"{rows} rows an expert, transposed view, TFLOP/s",
            teraflop / seconds_of(lambda x=x_TI, w=w_EOI, e=ends_E: torch._grouped_mm(x, w.transpose(1, 2), e)),
        )
        yield f"{rows} rows an expert, contiguous, TFLOP/s", teraflop / seconds_of(partial(torch._grouped_mm, x_TI, stored, ends_E))
        difference = (torch._grouped_mm(x_TI, w_EOI.transpose(1, 2), ends_E) - torch._grouped_mm(x_TI, stored, ends_E)).abs().max()
        yield f"{rows} rows an expert, largest difference of the two", difference.item()


def skinny() -> Results:
    for tokens in (4096, 16384):
        for name, (o, i) in LAYERS.items():
            x_TI, a_RI, p_TR, b_OR, y_TO = drawn(tokens, i), drawn(16, i), drawn(tokens, 16), drawn(o, 16), drawn(tokens, o)
            yield f"{name}, {tokens} rows, x·Aᵀ, µs", 1e6 * seconds_of(lambda x=x_TI, a=a_RI: x @ a.T)
            yield f"{name}, {tokens} rows, y + p·Bᵀ, µs", 1e6 * seconds_of(lambda y=y_TO, p=p_TR, b=b_OR: y.addmm_(p, b.T))


def loss() -> Results:
    width, rows = 4096, 16384
    for words in (128256, 151936):
        w_VC, h_NC = drawn(words, width), drawn(rows, width)
        targets_N = torch.randint(0, words, (rows,), device="cuda")
        for chunk in (1024, 2048, 4096):

            def whole(w: Tensor = w_VC, h: Tensor = h_NC, t: Tensor = targets_N, size: int = chunk) -> None:
                for at in range(0, rows, size):
                    logits = h[at : at + size] @ w.T
                    d = torch.softmax(logits.float(), -1)
                    d[torch.arange(len(d), device="cuda"), t[at : at + size]] -= 1
                    torch.mm(d.to(h.dtype), w)

            yield f"{words} words, chunks of {chunk}, plain, ms", 1e3 * seconds_of(whole, 3)
        yield (
            f"{words} words, the two products alone, ms",
            1e3 * seconds_of(lambda w=w_VC, h=h_NC: [(h[at : at + 4096] @ w.T) @ w for at in range(0, rows, 4096)], 3),
        )


def launch() -> Results:
    model = llama(576, 1536, 30, 9, 3, 49152)
    for tokens in (512, 2048, 8192):
        ids_BT = torch.randint(0, 49152, (1, tokens), device="cuda")

        def step(ids: Tensor = ids_BT) -> None:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            model.zero_grad(set_to_none=False)

        yield f"{tokens} tokens, eager, ms", 1e3 * seconds_of(step, 5)
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            step()
        yield f"{tokens} tokens, as a graph, ms", 1e3 * seconds_of(graph.replay, 5)


def peft_loop() -> Results:
    from peft import LoraConfig, get_peft_model

    layers = 8
    model = get_peft_model(
        llama(4096, 14336, layers, 32, 8, 128256).requires_grad_(False), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    )
    for batch, length in ((4, 1024), (1, 4096)):
        ids_BT = torch.randint(0, 49152, (batch, length), device="cuda")

        def step(ids: Tensor = ids_BT) -> None:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

        yield f"{layers} layers of an 8B model and its head, {batch} × {length}", batch * length / seconds_of(step, 3)
        yield f"{layers} layers, {batch} × {length}, peak GB", torch.cuda.max_memory_allocated() / 1e9


def llama(hidden: int, inner: int, layers: int, heads: int, few: int, words: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=words, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=few, max_position_embeddings=32768, tie_word_embeddings=words == 49152,
    )  # fmt: skip
    with torch.device("cuda"):
        return LlamaForCausalLM(config).to(torch.bfloat16)


# name -> what gives its figures, their unit where the figure's own name has none
PROBES: dict[str, tuple[Callable[[], Results], str]] = {
    "gemm": (gemm, "TFLOP/s"),
    "attention": (attention, "TFLOP/s"),
    "nf4": (nf4, "GB/s"),
    "experts": (experts, ""),
    "skinny": (skinny, ""),
    "loss": (loss, ""),
    "peft": (peft_loop, "tokens/s"),
    "launch": (launch, ""),  # last: a capture that fails may take the device's context with it
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=500.0, help="begin no probe, and end the one at work, after so long (%(default)s)")
    parser.add_argument("--again", default="", help="probes that are measured anew")
    parser.add_argument("--out", default="gpu_probe", help="name of the results file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU is visible")
    file, deadline = RESULTS / f"{arguments.out}.json", time.monotonic() + arguments.seconds
    kept = json.loads(file.read_text(encoding="utf-8"))["probes"] if file.exists() else {}
    known = {name: found for name, found in kept.items() if name not in arguments.again.split(",") and found.get("whole")}
    for name in PROBES:
        if name not in known and time.monotonic() < deadline:
            print(f"{name}: {deadline - time.monotonic():.0f} s left", flush=True)
            known[name] = probed(name, deadline)
            write(arguments.out, {"threads": hardware.physical_cores(), "probes": known})  # at once: a call may be ended from outside
    left = [name for name in PROBES if not known.get(name, {}).get("whole")]
    print(f"left: {', '.join(left)}; the same command goes on" if left else "all is measured")


def probed(name: str, deadline: float) -> dict[str, Any]:
    """A probe's figures; `whole` is false where the time ended before it did."""
    measure, unit = PROBES[name]
    results: dict[str, float] = {}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        for what, value in measure():
            results[what] = value
            print(f"    {what}: {value:,.4g} {unit}", flush=True)
            if time.monotonic() > deadline:
                return {"unit": unit, "results": finite(results), "whole": False}
    except Exception as error:
        return {"unit": unit, "results": finite(results), "error": f"{type(error).__name__}: {error}"[:400], "whole": True}
    return {"unit": unit, "results": finite(results), "whole": True}


def finite(results: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: null is what could not be measured."""
    return {what: value if math.isfinite(value) else None for what, value in results.items()}


if __name__ == "__main__":
    main()
