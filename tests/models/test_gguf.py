import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from tests.models.gguf_files import THETA, write_gguf
from tunesmith.errors import UserError
from tunesmith.models.folder import check_folder
from tunesmith.models.gguf import config_for_both_versions, convert, llama3_rope

IDS_1T = torch.arange(0, 256, 7)[None]


def logits(folder: Path, **arguments: object) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, **arguments)
    with torch.inference_mode():
        return model(IDS_1T).logits


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def converted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "tiny.gguf", tiny_llama)
    convert(folder / "tiny.gguf", folder / "model")
    return folder


def test_weights_are_the_files_to_the_bit(converted: Path, tiny_llama: Path) -> None:
    original, found = load_file(tiny_llama / "model.safetensors"), load_file(converted / "model/model.safetensors")
    assert set(found) == set(original)
    for name, tensor in original.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor), name
    assert check_folder(converted / "model") == []


def test_logits_are_those_of_the_gguf(converted: Path) -> None:
    direct = logits(converted, gguf_file="tiny.gguf", quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)
    assert torch.equal(logits(converted / "model"), direct)


@pytest.mark.parametrize(("kind", "dtype"), [("Q8_0", torch.bfloat16), ("Q4_1", torch.bfloat16), ("F16", torch.float16)])
def test_quantised_files_become_real_weights(tiny_llama: Path, tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    expected = write_gguf(tmp_path / "tiny.gguf", tiny_llama, kind=kind)
    convert(tmp_path / "tiny.gguf", tmp_path / "model")
    found = load_file(tmp_path / "model/model.safetensors")
    for name, values in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], torch.tensor(values).to(dtype)), name
    assert "quantization_config" not in read(tmp_path / "model/config.json")


def test_tied_embeddings_stand_once(tiny_llama: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama, tied=True)
    convert(tmp_path / "tiny.gguf", tmp_path / "model")
    assert "lm_head.weight" not in load_file(tmp_path / "model/model.safetensors")
    assert read(tmp_path / "model/config.json")["tie_word_embeddings"] is True
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_both_versions_read_the_config(converted: Path) -> None:
    config = read(converted / "model/config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == THETA
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["rms_norm_eps"] == 1e-6  # the file holds 9.999999974752427e-07, the fp32 next to it
    assert "_model_name_or_path" not in config
    again = AutoModelForCausalLM.from_pretrained(converted / "model").config
    assert again.rope_parameters == {"rope_theta": THETA, "rope_type": "default"}


def test_old_names_say_the_same_as_the_new_ones() -> None:
    scaled = config_for_both_versions({"dtype": "bfloat16", "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}})
    assert scaled["rope_theta"] == 1e6 and scaled["rope_scaling"] == {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
    layers = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    gemma = config_for_both_versions({"dtype": "bfloat16", "rope_parameters": layers})
    assert (gemma["rope_theta"], gemma["rope_local_base_freq"]) == (1e6, 1e4) and "rope_scaling" not in gemma
    assert config_for_both_versions({"model_type": "gpt2"}) == {"model_type": "gpt2"}


def test_the_tokenizer_is_whole(converted: Path, tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted / "model")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|bos|>", "<|im_end|>", "<|pad|>")
    assert (
        tokenizer("<|im_start|>hé<|im_end|>")["input_ids"]
        == AutoTokenizer.from_pretrained(tiny_llama)("<|im_start|>hé<|im_end|>")["input_ids"]
    )
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_llama).chat_template
    assert tokenizer.decode(tokenizer("1 , 2  's 漢字")["input_ids"]) == "1 , 2  's 漢字"
    values = read(converted / "model/tokenizer_config.json")
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"  # the name that version 4 knows
    assert values["model_max_length"] == 512
    assert read(converted / "model/generation_config.json") == {"bos_token_id": 259, "eos_token_id": 257, "pad_token_id": 258}


@pytest.mark.parametrize(("split", "tokens"), [("smollm", ["a", "ĠĠ", "1", "2"]), ("gpt-2", ["a", "Ġ", "Ġ", "1", "2"])])
def test_text_is_cut_by_the_files_own_rule(tiny_llama: Path, tmp_path: Path, split: str, tokens: list[str]) -> None:
    """SmolLM cuts digits off first, so that the blanks before them stay together; transformers itself knows only GPT-2's rule here."""
    write_gguf(tmp_path / "tiny.gguf", tiny_llama, split=split)
    convert(tmp_path / "tiny.gguf", tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").tokenize("a  12") == tokens


def test_more_than_one_stop_token(tiny_llama: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama, tokenizer__ggml__eot_token_id=256)
    convert(tmp_path / "tiny.gguf", tmp_path / "model")
    assert read(tmp_path / "model/generation_config.json")["eos_token_id"] == [257, 256]


def llama3_factors(theta: float, factor: float, original: int = 8192, low: float = 1.0, high: float = 4.0) -> list[float]:
    """From transformers' own computation: its plain frequencies over its scaled ones."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=rope | {"original_max_position_embeddings": original})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = torch.tensor([theta ** (-2 * i / 16) for i in range(8)])
    return (plain / scaled).tolist()


def test_llama3_rope_is_found_and_proved(tiny_llama: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama, rope_freqs=llama3_factors(THETA, 32.0))
    convert(tmp_path / "tiny.gguf", tmp_path / "model")
    config = read(tmp_path / "model/config.json")
    assert config["rope_parameters"]["rope_type"] == config["rope_scaling"]["rope_type"] == "llama3"
    assert math.isclose(config["rope_parameters"]["factor"], 32.0, rel_tol=1e-6)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    plain = torch.tensor([THETA ** (-2 * i / 16) for i in range(8)])
    torch.testing.assert_close(plain / model.model.rotary_emb.inv_freq, torch.tensor(llama3_factors(THETA, 32.0)), rtol=1e-5, atol=0)
    with pytest.raises(UserError, match="not Llama 3's scaling"):
        llama3_rope(tmp_path, llama3_factors(THETA, 8.0, high=2.0), THETA)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"split": "unheard-of"}, "cuts text by the rule 'unheard-of'"),
        ({"llama__rope__scaling__type": "yarn"}, "rope.scaling.type yarn would be lost"),
        ({"leave_out": "layers.1.mlp.up_proj"}, "no tensor for model.layers.1.mlp.up_proj.weight"),
        ({"split__count": 3}, "llama-gguf-split --merge"),
    ],
)
def test_nothing_is_lost_in_silence(tiny_llama: Path, tmp_path: Path, arguments: dict, said: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama, **arguments)
    with pytest.raises(UserError, match=said):
        convert(tmp_path / "tiny.gguf", tmp_path / "model")


def test_damaged_files(tiny_llama: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama)
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for length in (30, 2000, len(whole) // 4):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a usable GGUF file"):
            convert(tmp_path / "cut.gguf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_built_in_model(builtin_model: Path) -> None:
    """SmolLM2-135M-Instruct as published: template, special tokens, rope base, tied embeddings, digits."""
    tokenizer = AutoTokenizer.from_pretrained(builtin_model)
    assert tokenizer("<|endoftext|><|im_start|><|im_end|>")["input_ids"] == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.tokenize("in  2024") == ["in", "ĠĠ", "2", "0", "2", "4"]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False)
    assert rendered == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    config = read(builtin_model / "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100000.0
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert (builtin_model / "model.safetensors").stat().st_size < 270_000_000  # a second copy of the embeddings would be 57 MB more
