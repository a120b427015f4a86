"""A task's head alone: values, shapes, the class of transformers that it belongs to. `oracle/test_peft_heads.py` has that class judge."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny_models import CONFIGS, tiny
from tunesmith.errors import UserError
from tunesmith.models import score
from tunesmith.models.score import Counterpart, Score, balanced, counterpart, fitted, make, read

LABELS = ["no", "perhaps", "yes"]


def test_logits_are_fp32_whatever_the_hidden_states_are():
    head = make(tiny("llama"), "tag", LABELS)
    head.begin(0)
    assert head.bias is not None
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    h_NC = torch.randn(5, 64, dtype=torch.bfloat16)
    logits_NL = head(h_NC)
    assert logits_NL.dtype == torch.float32 and logits_NL.shape == (5, 3)
    torch.testing.assert_close(logits_NL, h_NC.float() @ head.weight.T + torch.tensor([1.0, 2.0, 3.0]))


def test_only_a_tagger_has_a_bias_and_dropout():
    classifier, tagger = make(tiny("llama"), "classify", LABELS), make(tiny("llama"), "tag", LABELS)
    assert list(classifier.tensors) == ["score.weight"] and list(tagger.tensors) == ["score.weight", "score.bias"]
    assert not classifier.training and not tagger.training
    h_NC = torch.ones(4, 64)
    for head in (classifier, tagger):
        head.begin(0)
        head.train()
    assert torch.equal(classifier(h_NC), classifier(h_NC))
    assert not torch.equal(tagger(h_NC), tagger(h_NC))
    tagger.train(False)
    assert torch.equal(tagger(h_NC), tagger(h_NC))


def test_first_values_follow_the_seed_and_the_models_own_spread():
    model = tiny("llama")
    model.config.initializer_range = 0.5
    heads = [make(model, "classify", [str(i) for i in range(200)]) for _ in range(3)]
    for head, seed in zip(heads, (0, 0, 1), strict=True):
        head.begin(seed)
    assert torch.equal(heads[0].weight, heads[1].weight) and not torch.equal(heads[0].weight, heads[2].weight)
    assert heads[0].weight.std().item() == pytest.approx(0.5, rel=0.02) and heads[0].weight.mean().abs() < 0.02


def test_heads_are_made_on_the_meta_device_too():
    head = make(tiny("qwen3"), "tag", LABELS, "meta")
    assert head.weight.is_meta and head.bias is not None and head.bias.is_meta and head.weight.shape == (3, 64)


def test_one_label_is_nothing_to_tell_apart():
    with pytest.raises(UserError, match=r"nothing to tell apart, the data has 1 label\(s\): yes"):
        make(tiny("llama"), "classify", ["yes"])


def test_a_class_that_shows_no_hidden_states_is_refused(monkeypatch):
    monkeypatch.setattr(score, "decoder_of", lambda model: model)
    with pytest.raises(UserError, match=r"does not show the hidden states .* task\.head=words"):
        make(tiny("llama"), "classify", LABELS)


def test_balanced_weights_make_every_label_count_alike():
    weights_L = balanced([90, 10, 0])
    assert weights_L.tolist() == pytest.approx([100 / (3 * 90), 100 / (3 * 10), 0])
    assert (weights_L * torch.tensor([90, 10, 0])).tolist() == pytest.approx([100 / 3, 100 / 3, 0])


BOTH = {
    "llama": "Llama",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "phi": "Phi",
    "phi3": "Phi3",
    "gpt_oss": "GptOss",
    "starcoder2": "Starcoder2",
}


@pytest.mark.parametrize("name", BOTH)
def test_the_class_with_the_same_decoder(name):
    config = CONFIGS[name]()
    assert counterpart(config, "classify") == Counterpart(f"{BOTH[name]}ForSequenceClassification", "score")
    assert counterpart(config, "tag") == Counterpart(f"{BOTH[name]}ForTokenClassification", "score")


def test_taggers_that_call_their_head_otherwise():
    assert counterpart(CONFIGS["gpt2"](), "tag") == Counterpart("GPT2ForTokenClassification", "classifier")
    assert counterpart(CONFIGS["gpt2"](), "classify") == Counterpart("GPT2ForSequenceClassification", "score")


@pytest.mark.parametrize(("name", "task"), [("cohere", "classify"), ("granite", "tag"), ("opt", "tag"), ("gemma3", "tag")])
def test_where_the_library_has_no_such_class(name, task):
    assert counterpart(CONFIGS[name](), task) is None


def whole(folder, tensors, **config):
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


W, B = torch.arange(12.0).view(3, 4), torch.ones(3)
NAMED = {"2": "yes", "0": "no", "1": "perhaps"}


def test_the_head_of_a_whole_model_is_read_by_its_class(tmp_path):
    folder = whole(tmp_path, {"score.weight": W, "model.x": B}, architectures=["LlamaForSequenceClassification"], id2label=NAMED)
    head = read(folder)
    assert head is not None and (head.task, head.labels) == ("classify", ("no", "perhaps", "yes")) and torch.equal(head.weight, W)


def test_the_head_of_a_tagger_under_its_other_name(tmp_path):
    folder = whole(tmp_path, {"classifier.weight": W, "classifier.bias": B}, architectures=["GPT2ForTokenClassification"], id2label=NAMED)
    head = read(folder)
    assert head is not None and head.task == "tag" and head.bias is not None and torch.equal(head.bias, B)


def test_our_own_note_goes_before_the_class(tmp_path):
    folder = whole(tmp_path, {"score.weight": W}, architectures=["CohereForCausalLM"])
    assert read(folder) is None
    head = read(folder, {"task": "classify", "labels": ["a", "b", "c"]})
    assert head is not None and head.labels == ("a", "b", "c")


def test_heads_that_are_no_linear_layer_are_refused(tmp_path):
    folder = whole(tmp_path, {"classifier.dense.weight": W}, architectures=["XForSequenceClassification"], id2label=NAMED)
    with pytest.raises(UserError, match=r"no matrix score\.weight"):
        read(folder)
    with pytest.raises(UserError, match=r"weight \(3, 4\), bias \(3,\) is not served for task.name=classify: weight are needed"):
        fitted({"task": "classify", "labels": LABELS}, {"weight": W, "bias": B}, "here")


def test_labels_without_names_are_numbered():
    head = fitted({"task": "classify", "labels": ["a", "b"]}, {"weight": W}, "here")
    assert head.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_what_is_said_of_a_head_makes_it_again():
    head = Score("tag", LABELS, 4, input="chat")
    assert head.about == {"task": "tag", "labels": LABELS, "input": "chat"}
    again = fitted(head.about, {"weight": W, "bias": B}, "here")
    assert again.about == head.about and all(torch.equal(t, v) for t, v in zip(again.tensors.values(), (W, B), strict=True))
