"""The classes of `transformers`, one document at a time with their own attention, head and loss, as the judge of packed rows."""

from typing import Any

import pytest
import torch

from tests.tiny_models import some_documents, tiny
from tunesmith.data.corpus.batches import Plan, Row, make_row
from tunesmith.data.corpus.documents import Documents
from tunesmith.methods import full, lora, method
from tunesmith.methods.settings import Full
from tunesmith.methods.settings import LoRA as Settings
from tunesmith.models.proof import Proof
from tunesmith.step.forward import prepare
from tunesmith.step.optim import Optimizer

# soft-caps, sliding windows shorter than the documents, sinks, fused matrices, Conv1D, experts, scaled logits
FAMILIES = ["llama", "qwen3", "gemma2", "gemma3", "mistral", "gpt_oss", "phi3", "gpt2", "mixtral", "cohere", "granite", "opt"]
DOCUMENTS = some_documents([23, 5, 41, 16, 2, 30, 9, 12])
ALL = list(range(8))
TRUSTED = Proof(True, True, ())


def tuned(name: str) -> tuple[Any, Any]:
    model = tiny(name)
    tuning = lora.build(model, Settings(rank=4))
    torch.manual_seed(0)
    for parameter in tuning.parameters.values():
        parameter.data.normal_(std=0.1)
    method.place(model, tuning)
    return model, tuning


def own_loss(model: Any, document: int, documents: Documents = DOCUMENTS) -> torch.Tensor:
    """Summed cross entropy of one document, by the class's own loss."""
    begin, end = documents.begin_D[document], documents.end_D[document]
    ids_1T = torch.from_numpy(documents.ids_N[begin:end].astype("int64"))[None]
    learned_1T = torch.from_numpy(documents.learned_N[begin:end])[None]
    labels_1T = torch.where(learned_1T, ids_1T, -100)
    return model(input_ids=ids_1T, labels=labels_1T, use_cache=False).loss * learned_1T.sum()


def own_mean(model: Any) -> torch.Tensor:
    return torch.stack([own_loss(model, document) for document in ALL]).sum() / DOCUMENTS.learned_tokens


def gradients(parameters: dict[str, Any], losses: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    for parameter in parameters.values():
        parameter.grad = None
    for loss in losses:
        loss.backward()
    return {name: parameter.grad.clone() for name, parameter in parameters.items()}


def worst(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(((ours[name] - value).norm() / value.norm()).item() for name, value in theirs.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_loss_and_gradients_are_those_of_the_class_document_by_document(name):
    model, tuning = tuned(name)
    own = [own_loss(model, document) for document in ALL]
    theirs = gradients(tuning.parameters, own)
    forward = prepare(model, TRUSTED, "sdpa")
    packed = forward.loss(make_row(DOCUMENTS, ALL))
    assert packed.item() == pytest.approx(sum(loss.item() for loss in own), rel=1e-5)
    assert worst(gradients(tuning.parameters, [packed]), theirs) < 1e-5
    for document in ALL:
        assert forward.loss(make_row(DOCUMENTS, [document])).item() == pytest.approx(own[document].item(), rel=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_eight_documents_in_a_step_are_eight_single_rows(name):
    """However a step is packed: one row, several, or a row for each document."""
    model, tuning = tuned(name)
    forward = prepare(model, TRUSTED, "sdpa")

    def step(row_tokens: int, pack: bool) -> tuple[int, dict[str, torch.Tensor]]:
        rows = Plan(DOCUMENTS, DOCUMENTS.tokens, row_tokens, seed=3, pack=pack).rows(0)
        learned = sum(len(row.targets_N) for row in rows)
        return len(rows), gradients(tuning.parameters, [forward.loss(row, 1 / learned) for row in rows])

    one, few, single = step(10**6, True), step(64, True), step(64, False)
    assert one[0] == 1 < few[0] < single[0] == 8
    assert worst(one[1], single[1]) < 1e-5 and worst(few[1], single[1]) < 1e-5


def trained_through_our_head(model: Any, rows: list[Row], scale: float) -> dict[str, torch.Tensor]:
    """Full tuning's gradients in the fp32 masters, as the loop makes them."""
    tuning = full.build(model, Full())
    method.place(model, tuning)
    optimizer = Optimizer(tuning.parameters, "adamw", weight_decay=0.0, ratios={})
    forward = prepare(model, TRUSTED, "sdpa")
    assert forward.head is not None
    name = next(name for name, p in tuning.parameters.items() if p is forward.head.weight_VC)
    for row in rows:
        forward.loss(row, scale, optimizer.gradient_of(name)).backward()
        optimizer.gather()
    return {name: optimizer.gradient_of(name) for name in tuning.parameters}


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gemma2", "gpt2", "phi", "cohere", "opt"])
def test_full_tuning_gives_every_tensor_the_gradient_of_plain_autograd(name):
    """Tied embeddings get both parts, as embedding and as head; an untied head and its bias get theirs."""
    rows = [make_row(DOCUMENTS, [0, 1, 2, 3]), make_row(DOCUMENTS, [4, 5, 6, 7])]
    ours = trained_through_our_head(tiny(name), rows, 1 / DOCUMENTS.learned_tokens)
    reference = tiny(name).requires_grad_(True)
    own_mean(reference).backward()
    theirs = {key: parameter.grad for key, parameter in reference.named_parameters()}
    largest = max(value.norm() for value in theirs.values())
    for key, value in theirs.items():  # a key's bias does not change a softmax: its gradient is rounding
        assert (ours[key] - value).norm() < 1e-5 * max(value.norm(), 1e-2 * largest), key
    if name == "llama_tied":
        embedding_only = tiny(name)
        embedding_only.requires_grad_(True)
        embedding_only.lm_head.weight = torch.nn.Parameter(embedding_only.lm_head.weight.detach().clone())
        own_mean(embedding_only).backward()
        one_part = embedding_only.model.embed_tokens.weight.grad
        assert (ours["model.embed_tokens.weight"] - one_part).norm() > 0.1 * one_part.norm(), "the head's part is more than nothing"


def test_full_tuning_in_bf16_adds_up_in_fp32_and_stays_near_the_exact_gradient():
    rows = [make_row(DOCUMENTS, [document]) for document in ALL]
    model = tiny("llama_tied").bfloat16()
    ours = trained_through_our_head(model, rows, 1 / DOCUMENTS.learned_tokens)
    assert {gradient.dtype for gradient in ours.values()} == {torch.float32}
    exact = tiny("llama_tied").bfloat16().float().requires_grad_(True)
    own_mean(exact).backward()
    for key, parameter in exact.named_parameters():
        assert (ours[key] - parameter.grad).norm() < 0.05 * parameter.grad.norm(), key
    tied = ours["model.embed_tokens.weight"]
    assert not torch.equal(tied, tied.bfloat16().float()), "the head's own gradient was never rounded to bf16"
