"""What the suite measures: one line a case, the same for everyone.

A case fixes rows, model, method, rank, learning rate and rows of an optimizer step. `counts` says how many rows a level takes:
`smoke` is a try, `quick` one pass under 25 minutes, `full` several rounds, `gpu` one NVIDIA GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    title: str
    suite: str  # cpu or gpu
    rows: str  # the maker in rows.py
    counts: Mapping[str, int]  # level -> rows
    rows_per_step: int
    contenders: tuple[str, ...]  # of contenders.py; the first is what the others are compared with
    model: str = "builtin:smollm2-135m-instruct"  # or a name of gpu_models.SHAPES
    method: str = "lora"
    quantize: bool = False  # NF4 with double quantisation
    classify: bool = False
    rank: int = 8  # alpha is twice that, targets are all linear layers
    learning_rate: float = 2e-4  # falls by a cosine from the first step on; no warm-up, no weight decay, gradient norm at most 1
    row_tokens: int = 1024  # of a packed row, and the longest document
    one_in: Mapping[str, int] = field(default_factory=dict)  # level -> peers take one step of this part of the rows
    replayed: Mapping[str, int] = field(default_factory=dict)  # level -> steps that the fp32 reference computes again; 0 is none
    noise: float = 0.0  # relative difference of losses that the random first values alone make

    def count(self, level: str, ours: bool) -> int:
        """Rows of a contender. A peer that gets a part of them computes whole rows all the same."""
        return max(1, self.counts[level] // (1 if ours else self.one_in.get(level, 1)))

    def per_step(self, level: str, ours: bool) -> int:
        """Rows of an optimizer step; a try makes two steps of what it has."""
        count = self.count(level, ours)
        return min(self.rows_per_step, max(1, count // 2) if level == "smoke" else count)


OURS = "tunesmith"
EVERYONE = (OURS, "trl-default", "trl-best", "llamafactory-default", "llamafactory-best")
EVERYONE_GPU = (
    *EVERYONE, "axolotl-default", "axolotl-best", "unsloth-default", "unsloth-best", "torchtune-best",
)  # fmt: skip
INSTRUCTIONS = {"smoke": 4, "quick": 32, "full": 64}
FEWER = {"smoke": 4, "quick": 8, "full": 64}
TWICE = {"smoke": 2, "quick": 2, "full": 4}
CHATS = {"smoke": 4, "gpu": 128}

CASES: dict[str, Case] = {
    "lora": Case(
        title="LoRA, rank 8 on all linear layers, alpaca rows",
        suite="cpu", rows="alpaca", counts=INSTRUCTIONS, rows_per_step=16, contenders=EVERYONE, replayed=TWICE,
    ),
    "prefix": Case(
        title="One system prompt of 500 tokens before rows of 100, 32k tokens a step",
        suite="cpu", rows="shared_prefix", counts={"smoke": 8, "quick": 54, "full": 108}, rows_per_step=54,
        contenders=(OURS, "tunesmith-unshared", *EVERYONE[1:]), one_in={"smoke": 2, "quick": 9, "full": 3},
        replayed={"smoke": 2, "quick": 1, "full": 2},
    ),
    "classify": Case(
        title="Classification of short texts (BANKING77, 77 labels), LoRA with a task head",
        suite="cpu", rows="intents", counts={"smoke": 8, "quick": 512, "full": 2048}, rows_per_step=128,
        contenders=(OURS, "trainer-default", "trainer-best"), classify=True, one_in={"quick": 4, "full": 4},
        replayed={"smoke": 2, "quick": 1, "full": 4}, noise=0.08,
    ),
    "qlora": Case(
        title="QLoRA, NF4, rank 8 on all linear layers, alpaca rows",
        suite="cpu", rows="alpaca", counts=FEWER, rows_per_step=16, contenders=EVERYONE, quantize=True, replayed=TWICE,
    ),
    "full": Case(
        title="Full tuning, alpaca rows",
        suite="cpu", rows="alpaca", counts=FEWER, rows_per_step=16, contenders=EVERYONE, method="full", learning_rate=2e-5, replayed=TWICE,
    ),
    "dora": Case(
        title="DoRA, rank 8 on all linear layers, alpaca rows",
        suite="cpu", rows="alpaca", counts=FEWER, rows_per_step=16, contenders=EVERYONE, method="dora", replayed=TWICE,
    ),
    "8b-lora": Case(
        title="Llama-3.1-8B shape, LoRA r16", suite="gpu", rows="chats", counts=CHATS, rows_per_step=32, model="llama-3.1-8b", rank=16,
        row_tokens=4096, contenders=EVERYONE_GPU, replayed={"gpu": 2},
    ),
    "8b-qlora": Case(
        title="Llama-3.1-8B shape, QLoRA r16, rows of 16k tokens", suite="gpu", rows="chats", counts=CHATS, rows_per_step=32,
        model="llama-3.1-8b", rank=16, quantize=True, row_tokens=16384, contenders=(*EVERYONE_GPU, "tunesmith-16bit"), replayed={"gpu": 2},
    ),
    "8b-qlora-2k": Case(
        title="Llama-3.1-8B shape, QLoRA r16, rows of 2k tokens, smallest memory", suite="gpu", rows="chats",
        counts={"smoke": 4, "gpu": 32}, rows_per_step=16, model="llama-3.1-8b", rank=16, quantize=True, row_tokens=2048,
        contenders=("tunesmith-small", "unsloth-best"), replayed={"gpu": 1},
    ),
    "qwen3-8b-lora": Case(
        title="Qwen3-8B shape, LoRA r16", suite="gpu", rows="chats", counts=CHATS, rows_per_step=32, model="qwen3-8b", rank=16,
        row_tokens=4096, contenders=EVERYONE_GPU, replayed={"gpu": 1},
    ),
    "1b-lora": Case(
        title="Llama-3.2-1B shape, LoRA r16", suite="gpu", rows="chats", counts=CHATS, rows_per_step=32, model="llama-3.2-1b", rank=16,
        row_tokens=8192, contenders=EVERYONE_GPU, replayed={"gpu": 2},
    ),
    "135m-lora": Case(
        title="SmolLM2-135M shape, LoRA r16", suite="gpu", rows="chats", counts=CHATS, rows_per_step=32, model="smollm2-135m", rank=16,
        row_tokens=8192, contenders=EVERYONE_GPU, replayed={"gpu": 2},
    ),
    "8b-full": Case(
        title="Llama-3.1-8B shape, full tuning, optimizer in backward", suite="gpu", rows="chats", counts={"smoke": 4, "gpu": 32},
        rows_per_step=4, model="llama-3.1-8b", method="full", learning_rate=1e-5, row_tokens=4096,
        contenders=("tunesmith-full", "torchtune-best"),
    ),
    "70b-qlora": Case(
        title="Llama-3.3-70B shape, QLoRA r16", suite="gpu", rows="chats", counts={"smoke": 4, "gpu": 32}, rows_per_step=8,
        model="llama-3.3-70b", rank=16, quantize=True, row_tokens=4096, contenders=(OURS, "unsloth-best"),
    ),
}  # fmt: skip
