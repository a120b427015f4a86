"""transformers and peft as the judges of a task's head: the same weights give the same logits and gradients, whoever made them, and
each opens what the other saved."""

import copy
import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its optional parts warn about on import is none of our business
    from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

from tests.tiny_models import CONFIGS, some_ids, tiny
from tunesmith.data.corpus.batches import make_row
from tunesmith.data.corpus.documents import Documents
from tunesmith.errors import UserError
from tunesmith.methods import method
from tunesmith.methods.layouts import adapter_file, layout
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.tuning import Start
from tunesmith.models import front, score, slots
from tunesmith.models import load as loading
from tunesmith.models.load import quiet
from tunesmith.models.proof import Proof
from tunesmith.step.forward import prepare
from tunesmith.train import weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft asks for it
]
LABELS = {"classify": ["no", "perhaps", "yes"], "tag": ["O", "B-PER", "I-PER"]}
AUTO = {"classify": t.AutoModelForSequenceClassification, "tag": t.AutoModelForTokenClassification}
TASK_TYPES = {"classify": "SEQ_CLS", "tag": "TOKEN_CLS"}
FAMILIES = ["llama", "qwen3", "mistral", "phi", "phi3", "gpt2"]
TASKS = ["classify", "tag"]
DOCUMENTS = [some_ids(length, seed=length) for length in (12, 7, 9)]


def theirs(family: str, task: str) -> Any:
    """The class with a head over the decoder of our tiny model, its head's values random."""
    config = CONFIGS[family]()
    config.num_labels = len(LABELS[task])
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(5)
        model = AUTO[task].from_config(config).float().eval()
    missing, unknown = model.load_state_dict(tiny(family).state_dict(), strict=False)
    assert {name.partition(".")[0] for name in missing} <= set(score.NAMES), "every other tensor has the same name"
    assert {name.partition(".")[0] for name in unknown} <= {"lm_head", "embed_out"}
    return model.requires_grad_(False)


def ours(family: str, task: str, name: str = "lora") -> tuple[Any, Any]:
    """A model with an adapter in place and a head, all values random."""
    model = tiny(family)
    settings: Any = SETTINGS[name]()
    tuning = method.build(model, settings, quantized=False)
    method.give_head(model, tuning, score.make(model, task, LABELS[task]))
    method.begin(tuning, Start(model, None, 0, lambda path: torch.empty(0)), settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    method.place(model, tuning)
    return model, tuning


@torch.no_grad()
def scores(model: Any, tuning: Any, ids_T: torch.Tensor) -> torch.Tensor:
    """Of every token, [T, labels]."""
    found: torch.Tensor = tuning.head(front.hidden(model, ids_T[None])[0])
    return found


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return ((one - other).abs().max() / other.abs().max()).item() < 1e-5


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_our_lora_with_a_head_opens_in_peft(family, task, tmp_path):
    model, tuning = ours(family, task)
    layout.write(tmp_path, model, tuning, "made/up")
    judge = PeftModel.from_pretrained(theirs(family, task), tmp_path)
    for ids_T in DOCUMENTS:
        expected = judge(input_ids=ids_T[None]).logits[0]
        found = scores(model, tuning, ids_T)
        assert close(found if task == "tag" else found[-1], expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_real_token_is_theirs_too_whichever_side_is_filled_up(side, tmp_path):
    model, tuning = ours("llama", "classify")
    layout.write(tmp_path, model, tuning, "made/up")
    judge = PeftModel.from_pretrained(theirs("llama", "classify"), tmp_path)
    length = max(map(len, DOCUMENTS))
    ids_BT, mask_BT = torch.zeros(len(DOCUMENTS), length, dtype=torch.long), torch.zeros(len(DOCUMENTS), length, dtype=torch.long)
    for row, ids_T in enumerate(DOCUMENTS):
        place = slice(length - len(ids_T), None) if side == "left" else slice(None, len(ids_T))
        ids_BT[row, place], mask_BT[row, place] = ids_T, 1
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    expected_BL = judge(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT).logits
    found_BL = torch.stack([scores(model, tuning, ids_T)[-1] for ids_T in DOCUMENTS])
    assert close(found_BL, expected_BL)
    with torch.no_grad():
        at_once_BTL = tuning.head(front.hidden(model, ids_BT))
    if side == "right":
        assert close(at_once_BTL[range(3), [len(ids_T) - 1 for ids_T in DOCUMENTS]], expected_BL)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["prompt", "ptuning", "prefix"])
def test_virtual_tokens_and_prefixes_with_a_head_open_in_peft(name, task, tmp_path):
    """One document at a time: behind virtual tokens the class looks at the very last position, filled up or not."""
    if name not in method.METHODS:
        pytest.skip(f"{name} is not on the shelf")
    model, tuning = ours("llama", task, name)
    layout.write(tmp_path, model, tuning, "made/up")
    judge = PeftModel.from_pretrained(theirs("llama", task), tmp_path)
    for ids_T in DOCUMENTS:
        expected = judge(input_ids=ids_T[None], attention_mask=torch.ones_like(ids_T)[None]).logits[0]
        found = scores(model, tuning, ids_T)
        assert close(found, expected[-len(ids_T) :]) if task == "tag" else close(found[-1], expected)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_peft_saved_opens_here(family, task, tmp_path):
    targets = ["q_proj", "v_proj"] if family == "llama" else ["c_attn"]
    judge = get_peft_model(theirs(family, task), LoraConfig(task_type=TASK_TYPES[task], target_modules=targets)).eval()
    torch.manual_seed(1)
    for parameter in judge.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    judge.save_pretrained(tmp_path)
    model = tiny(family)
    tuning = layout.fit(layout.read(tmp_path), model)
    slots.place(model, tuning.adapter)
    assert tuning.head is not None and tuning.head.task == task and tuning.head.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert set(tuning.head.tensors) <= set(tuning.parameters)
    for ids_T in DOCUMENTS:
        found, expected = scores(model, tuning, ids_T), judge(input_ids=ids_T[None]).logits[0]
        assert close(found if task == "tag" else found[-1], expected)


def test_prompt_tuning_with_a_head_saved_by_peft_opens_here(tmp_path):
    judge = get_peft_model(theirs("llama", "classify"), PromptTuningConfig(num_virtual_tokens=4, task_type="SEQ_CLS")).eval()
    judge.save_pretrained(tmp_path)
    model = tiny("llama")
    tuning = layout.fit(layout.read(tmp_path), model)
    slots.place(model, tuning.adapter)
    for ids_T in DOCUMENTS:
        expected = judge(input_ids=ids_T[None], attention_mask=torch.ones_like(ids_T)[None]).logits[0]
        assert close(scores(model, tuning, ids_T)[-1], expected)


@pytest.mark.parametrize("task", TASKS)
def test_labels_and_head_come_back_as_they_were(task, tmp_path):
    model, tuning = ours("qwen3", task)
    layout.write(tmp_path, model, tuning, "made/up")
    again = layout.fit(layout.read(tmp_path), tiny("qwen3"))
    assert again.head is not None and again.head.labels == tuple(LABELS[task]) and again.head.task == task
    assert list(again.parameters) == list(tuning.parameters)
    assert all(torch.equal(again.parameters[name], parameter) for name, parameter in tuning.parameters.items())
    config = json.loads((tmp_path / layout.CONFIG).read_text())
    assert (config["task_type"], config["modules_to_save"]) == (TASK_TYPES[task], ["score"])


def labelled(task: str) -> Documents:
    """The three documents, each with the labels of its last token, or of every second one, behind it."""
    ids, learned, learned_D = [], [], []
    for number, ids_T in enumerate(DOCUMENTS):
        marked = np.zeros(len(ids_T), bool)
        marked[[-1] if task == "classify" else slice(0, None, 2)] = True
        labels = (np.arange(marked.sum()) + number) % 3
        ids.append(np.concatenate([ids_T.numpy(), labels]))
        learned.append(np.concatenate([marked, np.zeros(len(labels), bool)]))
        learned_D.append(marked.sum())
    end_D = np.cumsum([len(each) for each in ids])
    begin_D, count = end_D - [len(each) for each in ids], len(ids)
    return Documents(
        np.concatenate(ids).astype(np.uint32), np.concatenate(learned), begin_D, end_D, np.array(learned_D),
        np.zeros(count, np.uint32), np.arange(count), ("made.jsonl",), True,
    )  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_loss_and_gradients_of_a_packed_row_are_theirs_of_single_documents(task, weighted, tmp_path):
    model, tuning = ours("llama", task)
    layout.write(tmp_path, model, tuning, "made/up")
    judge = PeftModel.from_pretrained(theirs("llama", task), tmp_path, is_trainable=True).eval()
    weights_L = torch.tensor([0.5, 1.0, 3.0]) if weighted else None
    tuning.head.class_weights_L = weights_L
    documents = labelled(task)
    row = make_row(documents, [0, 1, 2])
    forward = prepare(model, Proof(True, True, ()), "sdpa", tuning.head)
    loss = forward.loss(row, 1 / forward.weight(row))
    loss.backward()
    logits, targets = [], []
    for number in range(3):
        alone = make_row(documents, [number])
        found = judge(input_ids=alone.ids_T[None]).logits[0]
        logits.append(found[alone.hidden_N] if task == "tag" else found[None])
        targets.append(alone.targets_N)
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets), weight=weights_L)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    reference = dict(judge.named_parameters())
    for name, parameter in tuning.parameters.items():
        path, part = name.rsplit(".", 1)
        key = f"score.modules_to_save.default.{part}" if path == "score" else f"{path}.lora_{part}.default.weight"
        gradient = reference[f"base_model.model.{key}"].grad
        assert (
            parameter.grad is not None
            and gradient is not None
            and parameter.grad.dtype == torch.float32
            and close(parameter.grad, gradient)
        ), name
    assert forward.mean_loss([row]) == (pytest.approx(expected.item(), rel=1e-5), len(row.targets_N))
    assert forward.mean_loss([make_row(documents, [i]) for i in range(3)])[0] == pytest.approx(expected.item(), rel=1e-5)


def test_a_head_beside_a_layout_that_is_not_pefts_has_a_file_of_its_own(tmp_path):
    model, tuning = ours("llama", "tag")
    layout.write(tmp_path, model, tuning, "made/up")
    config = json.loads((tmp_path / layout.CONFIG).read_text())
    del config["peft_type"]
    found: dict[str, Any] = {}
    from tunesmith.methods.layouts import head

    own = head.add(model, tuning.head, plain := {key: config[key] for key in ("r",)}, found)
    assert found == {} and plain == {"r": config["r"]} and set(own) == {"score.weight", "score.bias"}


def test_a_head_on_the_language_models_own_head_is_refused():
    model = tiny("llama")
    tuning = method.build(model, SETTINGS["lora"](), quantized=False)
    tuning.adapter["lm_head"] = copy.deepcopy(next(iter(tuning.adapter.values())))
    with pytest.raises(UserError, match=r"lm_head is the language model's head, which computes nothing for task\.name=tag"):
        method.give_head(model, tuning, score.make(model, "tag", LABELS["tag"]))


def test_the_language_models_own_head_is_not_trained_with_the_rest():
    for family, kept in (("llama", False), ("llama_tied", True)):
        model = tiny(family)
        tuning = method.build(model, SETTINGS["full"](), quantized=False)
        before = dict(tuning.parameters)
        method.give_head(model, tuning, score.make(model, "classify", LABELS["classify"]))
        assert "lm_head.weight" not in tuning.parameters and "score.weight" in tuning.parameters
        assert len(before) - len(tuning.parameters) == (-1 if kept else 0)


def logits_of(judge: Any, ids_T: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = judge(input_ids=ids_T[None]).logits[0]
    return found


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen3", "gpt2", "mixtral"])
def test_a_whole_model_with_a_head_opens_in_transformers_and_here(family, task, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_tokenizer", lambda folder: None)
    tiny(family).save_pretrained(tmp_path / "base")
    base = loading.load(tmp_path / "base", dtype=torch.float32)
    tuning = method.build(base.model, SETTINGS["full"](), quantized=False)
    method.give_head(base.model, tuning, score.make(base.model, task, LABELS[task], input="chat"))
    assert tuning.head is not None
    with torch.no_grad():
        for seed, parameter in enumerate(tuning.parameters.values()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.05)
        for parameter in tuning.head.parameters():
            parameter.normal_()
    (tmp_path / "model").mkdir()
    weights.write_model(tmp_path / "model", base.model, tmp_path / "base", tuning.head)
    with quiet():
        judge, told = AUTO[task].from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"], "not a tensor too few or too many"
    assert list(judge.config.id2label.values()) == LABELS[task] and judge.config.num_labels == 3
    head = score.read(tmp_path / "model", adapter_file.about(tmp_path / "model")["head"])
    assert head is not None and head.about == {"task": task, "labels": LABELS[task], "input": "chat"}
    again = loading.load(tmp_path / "model", dtype=torch.float32, own_head=False)
    for ids_T in DOCUMENTS:
        with torch.no_grad():
            found = head(front.hidden(again.model, ids_T[None])[0])
        assert torch.equal(found, scores(base.model, tuning, ids_T))
        assert close(found if task == "tag" else found[-1], logits_of(judge, ids_T))


def test_a_classifier_made_by_transformers_opens_here(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_tokenizer", lambda folder: None)
    judge = theirs("qwen3", "classify")
    judge.config.id2label = dict(enumerate(LABELS["classify"]))
    judge.save_pretrained(tmp_path)
    head = score.read(tmp_path)
    base = loading.load(tmp_path, dtype=torch.float32, own_head=False)
    assert head is not None and head.labels == tuple(LABELS["classify"])
    for ids_T in DOCUMENTS:
        with torch.no_grad():
            assert close(head(front.hidden(base.model, ids_T[None])[0])[-1], logits_of(judge, ids_T))
    with pytest.raises(UserError) as caught:
        loading.load(tmp_path, dtype=torch.float32)
    assert "has no tensor for lm_head.weight" in caught.value.problems[0] and "a model with a task's head" in caught.value.problems[-1]
