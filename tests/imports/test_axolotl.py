import pytest

from tests.imports.tables import known, runs, translated
from tunesmith.imports import axolotl

# Keys of its shipped examples for text, and others that people write.
COMMON = """
base_model model_type tokenizer_type revision_of_model trust_remote_code load_in_8bit load_in_4bit strict datasets test_datasets
pretraining_dataset dataset_prepared_path val_set_size output_dir adapter lora_model_dir sequence_len sample_packing eval_sample_packing
pad_to_sequence_len lora_r lora_alpha lora_dropout lora_target_linear lora_target_modules lora_modules_to_save lora_fan_in_fan_out
peft_use_dora peft_use_rslora loraplus_lr_ratio wandb_project wandb_entity wandb_watch wandb_name wandb_log_model
gradient_accumulation_steps micro_batch_size num_epochs max_steps optimizer lr_scheduler learning_rate train_on_inputs group_by_length
bf16 fp16 tf32 gradient_checkpointing gradient_checkpointing_kwargs early_stopping_patience resume_from_checkpoint local_rank
logging_steps xformers_attention flash_attention sdp_attention warmup_steps warmup_ratio evals_per_epoch saves_per_epoch save_steps
eval_steps save_total_limit debug deepspeed weight_decay max_grad_norm fsdp fsdp_config special_tokens tokens seed chat_template
default_system_message rl plugins liger_rope liger_rms_norm hub_model_id neftune_noise_alpha shuffle_merged_datasets unfrozen_parameters
eval_table_size eval_max_new_tokens curriculum_sampling dataset_processes save_safetensors
"""
BASE = {"base_model": "Qwen/Qwen3-0.6B", "datasets": [{"path": "mine.jsonl", "type": "alpaca"}], "learning_rate": 2e-4, "adapter": "lora"}


def test_common_keys_are_known():
    assert sorted(set(COMMON.split()) - known(axolotl)) == []


def settings(**given):
    t = translated(BASE | given)
    assert not t.refused
    return t


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"model.source": "Qwen/Qwen3-0.6B", "data.train": "mine.jsonl", "data.format": "alpaca", "data.max_length": 512}),
        ({}, {"train.epochs": 1.0, "train.schedule": "cosine", "train.warmup": 0.03, "train.learning_rate": 2e-4}),
        ({"adapter": "qlora"}, {"method.name": "lora", "model.quantize": "nf4"}),
        ({"load_in_4bit": True}, {"model.quantize": "nf4"}),
        ({"adapter": None}, {"method.name": "full"}),
        ({"peft_use_dora": True}, {"method.name": "dora"}),
        ({"peft_init_lora_weights": "pissa_niter_4"}, {"method.name": "pissa", "method.niter": 4}),
        ({"lora_modules_to_save": ["embed_tokens", "lm_head"]}, {"method.modules_to_save": ["embed_tokens", "lm_head"]}),
        ({"peft_trainable_token_indices": [5, 6]}, {"method.trainable_tokens": [5, 6]}),
        (
            {"adapter": None, "unfrozen_parameters": ["^lm_head.weight$", "model.layers.4[4-7]+.mlp"]},
            {"method.name": "freeze", "method.pattern": "(?:^lm_head.weight$).*|(?:model.layers.4[4-7]+.mlp).*"},
        ),
        ({"lora_target_linear": True}, {"method.targets": "all"}),
        ({"lora_target_modules": ["q_proj", "v_proj"]}, {"method.targets": ["q_proj", "v_proj"]}),
        (
            {"micro_batch_size": 2, "gradient_accumulation_steps": 4, "sequence_len": 2048, "sample_packing": True},
            {"train.tokens_per_step": 16384, "data.pack": True},
        ),
        ({"bf16": "auto"}, {"model.dtype": "auto"}),
        ({"optimizer": "adamw_bnb_8bit"}, {"train.optimizer": "adamw_8bit"}),
        ({"gradient_checkpointing": "true"}, {"train.recompute": "blocks"}),
        ({"val_set_size": 0.05}, {"data.evaluate": 0.05}),
        ({"test_datasets": [{"path": "held.jsonl", "type": "alpaca"}]}, {"data.evaluate": "held.jsonl"}),
        (
            {"datasets": None, "pretraining_dataset": [{"path": "o/n", "text_column": "content"}]},
            {"task.name": "text", "data.columns": {"text": "content"}, "data.train": "o/n"},
        ),
    ],
    ids=str,
)
def test_values(given, expected):
    found = settings(**given).settings
    assert {key: found.get(key) for key in expected} == expected
    assert runs(found)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"evals_per_epoch": 4}, "evals_per_epoch: 4: evaluation comes by default ten times"),
        ({"special_tokens": {"pad_token": "<pad>"}}, "special_tokens: "),
        ({"load_in_8bit": True}, "load_in_8bit: true: a base of 8 bits is not here"),
        ({"lora_target_modules": ["model.layers.[0-9]+.(q|v)_proj"]}, "lora_target_modules: "),
        ({"wandb_project": "mine"}, "wandb_project: mine: trackers are not served"),
        ({"unfrozen_parameters": ["lm_head"]}, "unfrozen_parameters: [lm_head]: says nothing beside an adapter"),
        ({"adapter": None, "unfrozen_parameters": ["embed_tokens[:9]"]}, "unfrozen_parameters: "),
        ({"adapter": None, "peft_use_dora": True}, "peft_use_dora: true: says nothing where every weight is trained"),
        ({"adapter": None, "lora_r": 8}, "lora_r: 8: says nothing where every weight is trained"),
    ],
    ids=str,
)
def test_what_is_left_is_listed(given, words):
    assert any(line.startswith(words) for line in settings(**given).left)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rl": "dpo"}, "rl: dpo is not in this version"),
        ({"adapter": "llama-adapter"}, "adapter: llama-adapter is no method"),
        ({"datasets": []}, "no datasets: what is learned from?"),
        ({"datasets": [{"type": "alpaca"}]}, "datasets.0: has no path"),
        ({"base_model": None}, "no base_model"),
    ],
    ids=str,
)
def test_what_makes_no_run_is_refused(given, words):
    assert any(line.startswith(words) for line in translated(BASE | given).refused)
