from functools import partial
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.methods import method
from tunesmith.methods.settings import LoRA
from tunesmith.models import slots
from tunesmith.step.shell import STANDS_FOR, shells


def model_of(targets: Any = "all") -> Any:
    sizes: dict[str, Any] = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, vocab_size=64)
    made: Any = LlamaForCausalLM(LlamaConfig(**sizes)).eval().requires_grad_(False)
    method.place(made, method.build(made, LoRA(rank=2, targets=targets), quantized=False, device="cpu"))
    return made


def test_blocks_of_one_kind_share_a_shell_that_computes_what_each_of_them_does() -> None:
    model = model_of()
    for module in slots.placed(model).values():
        torch.nn.init.normal_(module.A)  # type: ignore[arg-type]
        torch.nn.init.normal_(module.B)  # type: ignore[arg-type]
    found = shells(model)
    assert len({id(loan.shell) for _, loan in found}) == 1
    h = torch.randn(1, 5, 32)
    angles = model.model.rotary_emb(h, torch.arange(5)[None])
    outputs = [block(h, position_embeddings=angles) for block, _ in found]
    for (_, loan), expected in zip(found, outputs, strict=True):
        torch.testing.assert_close(loan.lend()(h, position_embeddings=angles), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(outputs[0], outputs[1])


def test_a_shell_knows_for_whom_it_stands_and_owns_nothing() -> None:
    model = model_of()
    blocks: Any = shells(model)
    (first, one), (second, other), _ = blocks
    shell: Any = one.lend()
    assert vars(shell.self_attn)[STANDS_FOR] is first.self_attn and shell.self_attn.layer_idx == 0
    assert shell is other.lend() and vars(shell.self_attn)[STANDS_FOR] is second.self_attn and shell.self_attn.layer_idx == 1
    assert shell.mlp.up_proj.weight is second.mlp.up_proj.weight
    assert STANDS_FOR not in vars(first.self_attn)
    assert first.self_attn.layer_idx == 0


def test_blocks_that_differ_in_what_stands_in_them_have_shells_of_their_own() -> None:
    model = model_of(["layers.0.mlp.up_proj", "layers.1.mlp.up_proj", "layers.2.mlp.down_proj"])
    made = [id(loan.shell) for _, loan in shells(model)]
    assert made[0] == made[1] != made[2]


def test_parts_that_stand_in_for_a_class_are_left_out() -> None:
    model = model_of()
    norm = model.model.layers[0].input_layernorm
    slots.stand_in(norm, partial(lambda x: x * 0))
    (_, loan), *_ = shells(model)
    shell: Any = loan.lend()
    assert shell.input_layernorm(torch.ones(1, 32)).abs().sum() > 0
    assert norm(torch.ones(1, 32)).abs().sum() == 0, "the block's own stays where it is"
