"""From a packed row to its loss. Against the classes' own numbers it is judged in `oracle/test_transformers.py`."""

from dataclasses import replace

import pytest
import torch

from tests.tiny_models import some_documents, tiny
from tunesmith.data.corpus.batches import make_row
from tunesmith.methods import lora, method
from tunesmith.methods.settings import LoRA as Settings
from tunesmith.models import attention
from tunesmith.models.proof import Proof
from tunesmith.step.forward import Forward, Leaf, first_nonfinite, prepare
from tunesmith.step.loss import loss_of_logits
from tunesmith.step.recompute import recompute_blocks

DOCUMENTS = some_documents([11, 5, 17, 8])
ALL = [0, 1, 2, 3]
TRUSTED = Proof(True, True, ())


def tuned(name="llama", **settings):
    model = tiny(name)
    tuning = lora.build(model, Settings(**settings))
    torch.manual_seed(0)
    for parameter in tuning.parameters.values():
        parameter.data.normal_(std=0.1)
    method.place(model, tuning)
    return model, tuning


def gradients(forward, tuning, members=ALL):
    for parameter in tuning.parameters.values():
        parameter.grad = None
    loss = forward.loss(make_row(DOCUMENTS, members))
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in tuning.parameters.items()}


@pytest.mark.parametrize("own_head", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_prepare_does_what_the_proof_allows(own_head, packed):
    model = tiny("llama")
    forward = prepare(model, Proof(own_head, packed, ()), "sdpa")
    assert model.config._attn_implementation == (attention.NAME if packed else "sdpa")
    assert (forward.own_head, forward.packed) == (own_head, packed)
    assert (forward.head is None) == (forward.decoder is None) == (not own_head)


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi"])
def test_without_our_head_the_number_is_the_same(name):
    model = tiny(name)
    row = make_row(DOCUMENTS, ALL)
    ours = prepare(model, TRUSTED, "sdpa").loss(row, 0.1)
    theirs = prepare(model, Proof(False, True, ()), "sdpa").loss(row, 0.1)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_mean_loss_is_over_all_learned_tokens_of_all_rows():
    forward = prepare(tiny("llama"), TRUSTED, "sdpa")
    rows = [make_row(DOCUMENTS, members) for members in ([0, 1], [2], [3])]
    mean, learned = forward.mean_loss(rows)
    assert learned == DOCUMENTS.learned_tokens == sum(len(row.targets_N) for row in rows)
    assert mean == pytest.approx(sum(forward.loss(row).item() for row in rows) / learned, rel=1e-6)
    assert forward.mean_loss([]) == (0.0, 0)


def test_mean_loss_makes_no_graph_and_no_gradients():
    model, tuning = tuned()
    forward = prepare(model, TRUSTED, "sdpa")
    forward.mean_loss([make_row(DOCUMENTS, ALL)])
    assert all(parameter.grad is None for parameter in tuning.parameters.values())


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mixtral"])
def test_recomputing_blocks_changes_no_gradient(name):
    model, tuning = tuned(name)
    forward = prepare(model, TRUSTED, "sdpa")
    plain = gradients(forward, tuning)
    recompute_blocks(model)
    loss, found = gradients(forward, tuning)
    assert loss == plain[0] and all(torch.equal(found[key], value) for key, value in plain[1].items())


def test_recomputing_keeps_only_the_blocks_inputs():
    def kept(recompute):
        model, _ = tuned()
        forward = prepare(model, TRUSTED, "sdpa")
        if recompute:
            recompute_blocks(model)
        sizes = []

        def keep(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            forward.loss(make_row(DOCUMENTS, ALL))
        return sum(sizes)

    assert kept(True) < 0.2 * kept(False)


def test_recomputing_draws_the_same_dropout_again():
    model, tuning = tuned(dropout=0.3)
    forward = prepare(model, TRUSTED, "sdpa")
    tuning.train()

    def seeded():
        torch.manual_seed(7)
        return gradients(forward, tuning)

    plain = seeded()
    assert plain[0] != gradients(forward, tuning)[0], "dropout is on"
    recompute_blocks(model)
    loss, found = seeded()
    assert loss == plain[0] and all(torch.equal(found[key], value) for key, value in plain[1].items())


def test_learning_is_the_loss_and_its_backward_pass():
    model, tuning = tuned()
    forward = prepare(model, TRUSTED, "sdpa")
    loss, wanted = gradients(forward, tuning)
    for parameter in tuning.parameters.values():
        parameter.grad = None
    learned = forward.learn(make_row(DOCUMENTS, ALL))
    assert learned.item() == loss and not learned.requires_grad
    assert all(torch.equal(parameter.grad, wanted[name]) for name, parameter in tuning.parameters.items())


def test_without_anything_trained_learning_gives_the_loss_alone():
    forward = prepare(tiny("llama"), TRUSTED, "sdpa")
    row = make_row(DOCUMENTS, ALL)
    assert forward.learn(row).item() == forward.loss(row).item()


def test_gradients_of_one_tensor_by_several_graphs_are_added_up_in_fp32():
    source = torch.ones(4, dtype=torch.bfloat16, requires_grad=True) * 1
    leaf = Leaf(source)
    for _ in range(300):
        (leaf.tensor * 1).sum().backward()
    gradient = leaf.gradient()
    assert gradient is not None and gradient.dtype == torch.bfloat16
    assert gradient.tolist() == [300.0] * 4, "in bf16 the sum would stand still at 256"
    assert Leaf(source.detach()).gradient() is None and not Leaf(source.detach()).tensor.requires_grad


def test_rows_that_share_where_they_may_not_be_packed_are_our_own_mistake():
    forward = prepare(tiny("llama"), Proof(True, False, ()), "sdpa")
    with pytest.raises(AssertionError, match="only where they may be packed"):
        forward.loss(replace(make_row(DOCUMENTS, [0, 1]), parents=(-1, 0)))


def test_a_row_in_which_nothing_is_learned():
    documents = some_documents([6], learned=0.0)
    documents.learned_N[:] = False
    for proof in (TRUSTED, Proof(False, False, ())):
        model, tuning = tuned()
        loss = prepare(model, proof, "sdpa").loss(make_row(documents, [0]))
        assert loss.item() == 0
        loss.backward()
        assert all(parameter.grad.abs().max() == 0 for parameter in tuning.parameters.values())


def test_the_first_module_that_is_not_finite_is_named():
    model, tuning = tuned()
    forward = prepare(model, TRUSTED, "sdpa")
    row = make_row(DOCUMENTS, ALL)
    assert first_nonfinite(forward, row) == ""
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    assert first_nonfinite(forward, row) == "model.layers.1.mlp.up_proj"
    assert not model.model.layers[1].mlp.up_proj._forward_hooks
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = 0.0
    with torch.no_grad():  # a change that torch knows of: copies of an adapter's matrices go by it
        tuning.parameters["model.layers.0.self_attn.o_proj.B"][0, 0] = float("inf")
    assert first_nonfinite(forward, row) == "model.layers.0.self_attn.o_proj"


def test_unpacked_rows_go_through_the_class_as_it_is():
    model = tiny("lfm2")  # convolutions would leak from one document to the next
    forward = prepare(model, Proof(True, False, ()), "sdpa")
    row = make_row(DOCUMENTS, [2])
    logits = model(input_ids=row.ids_T[None], use_cache=False).logits[0]
    expected = loss_of_logits(logits, row.hidden_N, row.targets_N)
    torch.testing.assert_close(forward.loss(row), expected, rtol=1e-5, atol=1e-5)
    assert isinstance(forward, Forward) and not forward.packed
