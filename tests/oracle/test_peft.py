"""peft as the judge: the same adapter gives the same logits and gradients, whoever made it, and each reads the other's folders."""

import json
import warnings
from typing import Any

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its optional parts warn about on import is none of our business
    from peft import LoraConfig, PeftModel, get_peft_model

from tests.tiny_models import VOCABULARY, some_ids, tiny
from tunesmith.errors import UserError
from tunesmith.methods import lora, method
from tunesmith.methods.layouts import layout
from tunesmith.methods.layouts import lora as layouts_lora
from tunesmith.methods.settings import LoRA as Settings
from tunesmith.methods.tuning import Start
from tunesmith.models import slots

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft asks for it
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),  # of its own making, for Mixtral
]
FAMILIES = ["llama", "qwen3", "gemma3", "mistral", "phi3", "gpt2", "mixtral"]
IDS_BT = some_ids(24).view(2, 12)


def ours(name: str, **settings: Any) -> tuple[Any, Any]:
    """A model with our adapter in place, A and B random."""
    model = tiny(name)
    tuning = lora.build(model, Settings(**settings))
    torch.manual_seed(0)
    for parameter in tuning.parameters.values():
        parameter.data.normal_(std=0.1)
    method.place(model, tuning)
    return model, tuning


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def loss(logits_BTV: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits_BTV[:, :-1].reshape(-1, VOCABULARY), IDS_BT[:, 1:].reshape(-1), reduction="sum")


@pytest.mark.parametrize("settings", [{}, {"rank": 3, "alpha": 5.0, "rslora": True}, {"targets": ["o"], "rank": 16}], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_our_folders_load_in_peft_and_agree(name, settings, tmp_path):
    model, tuning = ours(name, **settings)
    layout.write(tmp_path, model, tuning, "made/up")
    theirs = PeftModel.from_pretrained(tiny(name), tmp_path)
    base = tiny(name)(IDS_BT).logits
    with torch.no_grad():
        assert relative(model(IDS_BT).logits, theirs(IDS_BT).logits) < 1e-5
        assert relative(base, theirs(IDS_BT).logits) > 1e-3, "the adapter does something"
    wrapped = {path.removeprefix("base_model.model.") for path, module in theirs.named_modules() if hasattr(module, "lora_A")}
    assert wrapped == set(tuning.adapter)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_agree(name, tmp_path):
    model, tuning = ours(name)
    layout.write(tmp_path, model, tuning, "made/up")
    theirs = PeftModel.from_pretrained(tiny(name), tmp_path, is_trainable=True)
    loss(model(IDS_BT).logits).backward()
    loss(theirs(IDS_BT).logits).backward()
    reference = dict(theirs.named_parameters())
    for key, parameter in tuning.parameters.items():
        path, letter = key.rsplit(".", 1)
        expected = reference[f"base_model.model.{path}.lora_{letter}.default.weight"].grad
        assert parameter.grad is not None and expected is not None and relative(parameter.grad, expected) < 1e-5, key


MADE_BY_PEFT: dict[str, dict[str, Any]] = {
    "names": {"target_modules": ["q_proj", "down_proj"]},
    "all": {"target_modules": "all-linear", "r": 3, "lora_alpha": 7},
    "regex": {"target_modules": r".*layers\.1\..*\.(k|v)_proj"},
    "path": {"target_modules": ["model.layers.0.self_attn.q_proj"]},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True, "r": 4, "lora_alpha": 6},
    "layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "excluded": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.0\..*"},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"v_proj": 2, r"layers\.1\.mlp\.up_proj": 6},
        "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3, "up_proj": 5},
    },
    "patterns and rslora": {
        "target_modules": ["q_proj", "v_proj"],
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 3},
    },
    "gaussian": {"target_modules": ["o_proj"], "init_lora_weights": "gaussian", "lora_dropout": 0.1},
}


def saved_by_peft(name: str, folder: Any, **settings: Any) -> Any:
    theirs = get_peft_model(tiny(name), LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(1)
    for key, parameter in theirs.named_parameters():
        if "lora_" in key:
            parameter.data.normal_(std=0.1)
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("settings", MADE_BY_PEFT.values(), ids=list(MADE_BY_PEFT))
def test_folders_made_by_peft_load_here_and_agree(settings, tmp_path):
    theirs = saved_by_peft("llama", tmp_path, **settings)
    model = tiny("llama")
    tuning = layout.fit(layout.read(tmp_path), model)
    slots.place(model, tuning.adapter)
    with torch.no_grad():
        assert relative(model(IDS_BT).logits, theirs(IDS_BT).logits) < 1e-5
        assert relative(tiny("llama")(IDS_BT).logits, theirs(IDS_BT).logits) > 1e-4


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mixtral"])
def test_their_choice_of_all_linear_layers_loads_in_every_family(name, tmp_path):
    theirs = saved_by_peft(name, tmp_path, target_modules="all-linear")
    model = tiny(name)
    tuning = layout.fit(layout.read(tmp_path), model)
    slots.place(model, tuning.adapter)
    with torch.no_grad():
        assert relative(model(IDS_BT).logits, theirs(IDS_BT).logits) < 1e-5
    chosen, _ = slots.select(model, "all")
    assert {place.path for place in chosen} == set(tuning.adapter), "our `all` and theirs name the same layers"


def test_going_on_with_their_adapter_and_handing_it_back(tmp_path):
    """peft -> here -> peft: a folder with patterns is written again without loss."""
    theirs = saved_by_peft("llama", tmp_path / "theirs", **MADE_BY_PEFT["patterns and rslora"])
    model = tiny("llama")
    layout.write(tmp_path / "ours", model, layout.fit(layout.read(tmp_path / "theirs"), model), "made/up")
    again = PeftModel.from_pretrained(tiny("llama"), tmp_path / "ours")
    with torch.no_grad():
        assert relative(again(IDS_BT).logits, theirs(IDS_BT).logits) < 1e-6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bias": "all"}, ["bias='all' is not served"]),
        ({"lora_bias": True}, ["lora_bias=True is not served", "lora_B.bias"]),
        ({"target_modules": ["q_proj", "embed_tokens"]}, ["model.embed_tokens.lora_embedding_A"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights='pissa' changes the base model too"]),
        ({"init_lora_weights": "olora"}, ["init_lora_weights='olora' changes the base model too"]),
        ({"layer_replication": [[0, 2], [0, 2]]}, ["layer_replication=[[0, 2], [0, 2]] is not served"]),
    ],
    ids=str,
)
def test_what_is_not_served_is_refused_with_the_files_name(settings, words, tmp_path):
    saved_by_peft("llama", tmp_path, **{"target_modules": ["q_proj", "v_proj"]} | settings)
    with pytest.raises(UserError) as caught:
        layout.read(tmp_path)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert all(problem.startswith(str(tmp_path)) for problem in caught.value.problems)


def test_expert_stacks_tuned_by_peft_are_refused(tmp_path):
    """For Mixtral `all-linear` means its experts and its router too."""
    saved_by_peft("mixtral", tmp_path, target_modules="all-linear")
    with pytest.raises(UserError, match=r"target_parameters=.*gate_up_proj.* is not served"):
        layout.read(tmp_path)


def test_every_setting_of_a_lora_file_is_known():
    """A setting that a newer peft adds may change what an adapter computes: it must be looked at before it is served."""
    harmless = {
        "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "r", "target_modules",
        "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora", "init_lora_weights", "layers_to_transform",
        "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config",
        "lora_ga_config", "velora_config", "qalora_group_size",
    }  # fmt: skip
    read = {"peft_type", "use_dora", "modules_to_save", "trainable_token_indices", "ensure_weight_tying"}
    assert set(LoraConfig().to_dict()) == harmless | read | set(layouts_lora._PLAIN)


@pytest.mark.parametrize(("start", "named"), [("kaiming", True), ("gaussian", "gaussian"), ("orthogonal", "orthogonal")])
def test_first_values_are_drawn_from_the_same_distribution(start, named):
    """The same spread and the same extremes, of A and of B; of the orthogonal start both halves."""
    theirs = get_peft_model(tiny("llama"), LoraConfig(r=64, target_modules="all-linear", init_lora_weights=named))
    settings = Settings(rank=64, init=start)
    tuning = lora.build(tiny("llama"), settings)
    lora.init(tuning, Start(tiny("llama"), None, 0, lambda path: torch.empty(0)), settings)
    for key, reference in theirs.named_parameters():
        if "lora_" not in key:
            continue
        path, _, letter = key.removeprefix("base_model.model.").removesuffix(".default.weight").rpartition(".lora_")
        parameter = tuning.parameters[f"{path}.{letter}"]
        assert parameter.std().item() == pytest.approx(reference.std().item(), rel=0.1)
        assert parameter.abs().max().item() == pytest.approx(reference.abs().max().item(), rel=0.01 if start == "kaiming" else 0.4)


def test_the_file_says_what_peft_itself_would_say(tmp_path):
    """Every key of ours is one of theirs, with a value of the same kind."""
    model, tuning = ours("llama")
    layout.write(tmp_path, model, tuning, "made/up")
    written = json.loads((tmp_path / layout.CONFIG).read_text())
    theirs = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"]).to_dict()
    assert set(written) <= set(theirs)
    assert LoraConfig.from_pretrained(str(tmp_path)).r == 8
