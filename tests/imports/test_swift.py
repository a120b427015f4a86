import pytest

from tests.imports.tables import known, runs, translated
from tunesmith.imports import swift

BASE = {"model": "Qwen/Qwen3-0.6B", "dataset": ["mine.jsonl#500"], "tuner_type": "lora", "target_modules": ["all-linear"]}
COMMON = """
model tuner_type train_type dataset val_dataset torch_dtype num_train_epochs per_device_train_batch_size per_device_eval_batch_size
learning_rate lora_rank lora_alpha target_modules gradient_accumulation_steps eval_steps save_steps save_total_limit logging_steps
max_length output_dir system warmup_ratio dataloader_num_workers model_author model_name quant_bits split_dataset_ratio packing
attn_impl deepspeed use_hf adapters seed report_to padding_free truncation_strategy
"""


def test_common_keys_are_known():
    assert sorted(set(COMMON.split()) - known(swift)) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"model.source": "ms:Qwen/Qwen3-0.6B", "data.train": "mine.jsonl#500", "method.targets": "all", "method.alpha": 32}),
        ({}, {"train.learning_rate": 1e-4, "train.schedule": "cosine", "train.warmup": 0.05, "train.weight_decay": 0.1}),
        ({"use_hf": True}, {"model.source": "Qwen/Qwen3-0.6B"}),
        ({"model": "./models/mine"}, {"model.source": "./models/mine"}),
        ({"tuner_type": "full"}, {"method.name": "full", "train.learning_rate": 1e-5}),
        ({"torch_dtype": "bfloat16", "max_length": 4096}, {"model.dtype": "bfloat16", "data.max_length": 4096}),
        ({"dataset": ["a.jsonl", "b.jsonl"]}, {"data.train": [{"source": "a.jsonl", "weight": 1.0}, {"source": "b.jsonl", "weight": 1.0}]}),
        ({"split_dataset_ratio": 0.01}, {"data.evaluate": 0.01}),
        ({"quant_bits": 4}, {"model.quantize": "nf4"}),
        ({"use_dora": True}, {"method.name": "dora", "method.alpha": 32}),
        ({"init_weights": "pissa_niter_4"}, {"method.name": "pissa", "method.niter": 4}),
        ({"quant_bits": 4, "init_weights": "loftq"}, {"method.name": "lora", "method.init": "loftq"}),
        ({"modules_to_save": ["lm_head"]}, {"method.modules_to_save": ["lm_head"]}),
        (
            {"tuner_type": "adapter", "target_modules": None},
            {"method.name": "adapter", "method.width": 128, "method.activation": "gelu", "method.targets": None},
        ),
        ({"tuner_type": "adapter", "adapter_length": 64, "adapter_act": "silu"}, {"method.width": 64, "method.activation": "silu"}),
        (
            {"tuner_type": "full", "freeze_parameters_ratio": 1.0, "trainable_parameters": ["model.norm"]},
            {"method.name": "freeze", "method.pattern": r"model\.norm.*"},
        ),
        ({"tuner_type": "full", "freeze_parameters_ratio": 0.5}, {"method.name": "full", "method.pattern": None}),
        ({"task_type": "seq_cls", "num_labels": 2}, {"task.name": "classify"}),
        ({"task_type": "causal_lm"}, {"task.name": None}),
        ({"truncation_strategy": "delete"}, {"data.on_overlength": "drop"}),
    ],
    ids=str,
)
def test_values(given, expected):
    t = translated(BASE | given)
    assert not t.refused
    assert {key: t.settings.get(key) for key in expected} == expected
    assert runs(t.settings)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rlhf_type": "dpo"}, "rlhf_type: training by preferences"),
        ({"tuner_type": "boft"}, "tuner_type: boft is no method"),
        ({"task_type": "embedding"}, "task_type: embedding is no task"),
        ({"dataset": []}, "no dataset"),
        ({"model": None}, "no model"),
    ],
    ids=str,
)
def test_what_makes_no_run_is_refused(given, words):
    assert any(line.startswith(words) for line in translated(BASE | given).refused)
