"""How weights are stored in a GGUF file: the kinds, which tensor gets which type, and the packing itself.

llama.cpp packs K-quants with searches of its own; they are called in its library (`ggml_quantize_chunk`), never imitated.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """`main`: the type of most matrices; `more`: of those that llama.cpp's mixture gives more bits, "" where none is;
    `file_type`: llama.cpp's number for the mixture; `max_kl`: how far llama.cpp may be from our model, in nats a token."""

    main: str
    more: str
    file_type: int
    max_kl: float


KINDS: dict[str, Kind] = {
    "f32": Kind("F32", "", 0, 1e-5),
    "f16": Kind("F16", "", 1, 1e-4),
    "bf16": Kind("BF16", "", 32, 1e-3),
    "q8_0": Kind("Q8_0", "", 7, 1e-2),
    "q4_0": Kind("Q4_0", "", 2, 3e-1),
    "q4_k_m": Kind("Q4_K", "Q6_K", 15, 2e-1),
    "q5_k_m": Kind("Q5_K", "Q6_K", 17, 1e-1),
    "q6_k": Kind("Q6_K", "", 18, 5e-2),
}
