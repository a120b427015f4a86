import json

import pytest

from tests.imports.tables import known, runs, translated
from tunesmith.imports import llamafactory

# Every field of LLaMA-Factory 0.9.5's dataclasses (ModelArguments, DataArguments, FinetuningArguments, TrainingArguments,
# GeneratingArguments, EvaluationArguments), and of the Trainer's arguments in transformers 4 and 5 that they inherit.
LLAMAFACTORY = """
adapter_folder adapter_name_or_path add_special_tokens add_tokens additional_target apollo_layerwise apollo_proj apollo_proj_type
apollo_rank apollo_scale apollo_scale_front apollo_scale_type apollo_target apollo_update_interval asft_alpha audio_sampling_rate
badam_mask_mode badam_mode badam_start_block badam_switch_interval badam_switch_mode badam_update_ratio badam_verbose batch_size
block_diag_attn buffer_size cache_dir compute_accuracy compute_dtype create_new_adapter crop_to_patches cutoff_len
data_shared_file_system dataset dataset_dir default_system device_map disable_gradient_checkpointing disable_shuffling do_sample
double_quantization download_mode dpo_label_smoothing eaft_alpha early_stopping_steps enable_liger_kernel enable_thinking
enable_torch_profiler eval_dataset eval_num_beams eval_on_each_dataset export_device export_dir export_hub_model_id
export_legacy_format export_quantization_bit export_quantization_dataset export_quantization_maxlen export_quantization_nsamples
export_size finetuning_type flash_attn fp8 fp8_backend fp8_enable_fsdp_float8_all_gather freeze_extra_modules freeze_language_model
freeze_multi_modal_projector freeze_trainable_layers freeze_trainable_modules freeze_vision_tower galore_layerwise galore_proj_type
galore_rank galore_scale galore_target galore_update_interval hf_hub_token hyper_parallel_args ignore_pad_token_for_loss
image_do_pan_and_scan image_max_pixels image_min_pixels include_effective_tokens_per_second infer_backend infer_dtype
init_special_tokens interleave_probs kt_expert_checkpoint_path kt_lora_expert_intermediate_size kt_lora_expert_num kt_use_lora_experts
kt_weight_path kto_chosen_weight kto_rejected_weight lang ld_alpha length_penalty lora_alpha lora_dropout lora_rank lora_target
loraplus_lr_embedding loraplus_lr_ratio low_cpu_mem_usage mask_history master_addr master_port max_length max_new_tokens max_samples
media_dir mix_strategy mixture_of_depths model_max_length model_name_or_path model_revision module_dropout moe_aux_loss_coef
ms_hub_token n_shot neat_packing new_special_tokens_config num_beams offload_folder oft_block_size oft_rank oft_target om_hub_token
overwrite_cache overwrite_output_dir packing pissa_convert pissa_init pissa_iter plot_loss ppo_buffer_size ppo_epochs ppo_score_norm
ppo_target ppo_whiten_rewards pref_bco_weight pref_beta pref_ftx pref_loss preprocessing_batch_size preprocessing_num_workers
preserve_thinking print_param_status profile_modules profiler_active_steps profiler_output_dir profiler_profile_memory
profiler_record_shapes profiler_repeat profiler_wait_steps profiler_warmup_steps profiler_with_stack pure_bf16 quantization_bit
quantization_device_map quantization_method quantization_type ray_init_kwargs ray_num_workers ref_model ref_model_adapters
ref_model_quantization_bit repetition_penalty resize_vocab reward_model reward_model_adapters reward_model_quantization_bit
reward_model_type rope_scaling save_dir seed sglang_config sglang_lora_backend sglang_maxlen sglang_mem_fraction sglang_tp_size
shift_attn simpo_gamma skip_special_tokens split_special_tokens stage streaming swanlab_api_key swanlab_lark_secret
swanlab_lark_webhook_url swanlab_logdir swanlab_mode swanlab_project swanlab_run_name swanlab_workspace task task_dir temperature
template tokenized_path tool_format top_k top_p train_from_scratch train_on_prompt trust_remote_code upcast_layernorm
upcast_lmhead_output use_adam_mini use_apollo use_asft_loss use_audio_in_video use_badam use_dft_loss use_dora use_eaft_loss
use_fast_tokenizer use_galore use_hyper_parallel use_kt use_kv_cache use_llama_pro use_mca use_muon use_reentrant_gc use_rslora
use_swanlab use_unsloth use_unsloth_gc use_v1_kernels val_size video_fps video_max_pixels video_maxlen video_min_pixels vllm_config
vllm_enforce_eager vllm_gpu_util vllm_max_lora_rank vllm_maxlen
"""

TRAINER = """
accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size
average_tokens_across_devices batch_eval_metrics bf16 bf16_full_eval data_seed dataloader_drop_last dataloader_in_order
dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory
dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout
debug deepspeed disable_tqdm do_eval do_predict do_train enable_jit_checkpoint eval_accumulation_steps eval_delay
eval_do_concat_batches eval_on_start eval_steps eval_strategy eval_use_gather_object evaluation_strategy fp16 fp16_full_eval fsdp
fsdp_config full_determinism generation_config generation_max_length generation_num_beams gradient_accumulation_steps
gradient_checkpointing gradient_checkpointing_kwargs greater_is_better group_by_length hub_always_push hub_model_id hub_private_repo
hub_revision hub_strategy hub_token ignore_data_skip include_for_metrics include_num_input_tokens_seen label_names
label_smoothing_factor learning_rate length_column_name liger_kernel_config load_best_model_at_end local_rank log_level
log_level_replica log_on_each_node logging_dir logging_first_step logging_nan_inf_filter logging_steps logging_strategy
lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps metric_for_best_model neftune_noise_alpha no_cuda num_train_epochs optim
optim_args optim_target_modules output_dir parallelism_config per_device_eval_batch_size per_device_train_batch_size
predict_with_generate prediction_loss_only project push_to_hub remove_unused_columns report_to restore_callback_states_from_checkpoint
resume_from_checkpoint run_name save_on_each_node save_only_model save_safetensors save_steps save_strategy save_total_limit
skip_memory_metrics sortish_sampler tf32 torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps
trackio_bucket_id trackio_space_id trackio_static_space_id train_sampling_strategy use_cache use_cpu use_liger_kernel warmup_ratio
warmup_steps weight_decay
"""

# What its shipped examples for training and merging hold, and what people write in files.
EXAMPLES = """
model_name_or_path trust_remote_code stage do_train finetuning_type lora_rank lora_alpha lora_dropout lora_target use_dora use_rslora
pissa_init additional_target freeze_trainable_layers freeze_trainable_modules quantization_bit quantization_method double_quantization
dataset dataset_dir template cutoff_len max_samples packing neat_packing train_on_prompt mask_history val_size eval_dataset
preprocessing_num_workers dataloader_num_workers output_dir logging_steps save_steps plot_loss overwrite_cache overwrite_output_dir
save_only_model per_device_train_batch_size gradient_accumulation_steps learning_rate num_train_epochs lr_scheduler_type warmup_ratio
warmup_steps bf16 fp16 pure_bf16 ddp_timeout resume_from_checkpoint report_to deepspeed per_device_eval_batch_size eval_strategy
eval_steps flash_attn enable_liger_kernel use_unsloth_gc export_dir export_size export_device export_legacy_format infer_backend
adapter_name_or_path predict_with_generate do_predict max_new_tokens top_p temperature use_galore galore_layerwise galore_target
galore_rank galore_scale use_apollo use_badam badam_mode badam_switch_mode badam_switch_interval badam_verbose use_adam_mini use_muon
mixture_of_depths use_llama_pro loraplus_lr_ratio pref_beta pref_loss reward_model tokenized_path streaming buffer_size max_steps
ray_run_name ray_storage_path ray_num_workers placement_strategy resources_per_worker image_max_pixels video_max_pixels
freeze_vision_tower freeze_multi_modal_projector use_v1_kernels enable_thinking disable_gradient_checkpointing fp8 fp8_backend
"""

BASE = {"model_name_or_path": "Qwen/Qwen3-0.6B", "stage": "sft", "dataset": "mine", "finetuning_type": "lora"}


@pytest.mark.parametrize("fields", [LLAMAFACTORY, TRAINER, EXAMPLES], ids=["its own", "the Trainer's", "in its examples"])
def test_every_key_is_known(fields):
    assert sorted(set(fields.split()) - known(llamafactory)) == []


def settings(**given):
    t = translated(BASE | given)
    assert not t.refused
    return t


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"model.source": "Qwen/Qwen3-0.6B", "data.train": "mine", "method.name": "lora", "data.max_length": 2048}),
        ({"cutoff_len": 512}, {"data.max_length": 512}),
        ({"model_revision": "v1"}, {"model.source": "Qwen/Qwen3-0.6B@v1"}),
        ({"adapter_name_or_path": "saves/a"}, {"model.adapter": "saves/a"}),
        ({"lora_rank": 16, "lora_alpha": 64, "lora_dropout": 0.1}, {"method.rank": 16, "method.alpha": 64, "method.dropout": 0.1}),
        ({"lora_target": "q_proj,v_proj"}, {"method.targets": ["q_proj", "v_proj"]}),
        ({"lora_target": "all"}, {"method.targets": "all"}),
        ({"use_rslora": True, "loraplus_lr_ratio": 16.0}, {"method.rslora": True, "method.plus_ratio": 16.0}),
        ({"use_dora": True, "lora_dropout": 0.1}, {"method.name": "dora", "method.dropout": 0.1}),
        ({"pissa_init": True}, {"method.name": "pissa", "method.niter": 16, "method.alpha": 16}),
        ({"pissa_init": True, "pissa_iter": -1, "lora_alpha": 8}, {"method.name": "pissa", "method.niter": "exact", "method.alpha": 8}),
        ({"additional_target": "embed_tokens,lm_head"}, {"method.name": "lora", "method.modules_to_save": ["embed_tokens", "lm_head"]}),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": -2}, {"method.layers": 2, "method.end": "first"}),
        ({"finetuning_type": "freeze", "num_layer_trainable": 3}, {"method.name": "freeze", "method.layers": 3, "method.end": None}),
        ({"quantization_bit": 4, "double_quantization": False}, {"model.quantize": "nf4", "model.double_quant": False}),
        ({"finetuning_type": "full"}, {"method.name": "full"}),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 4}, {"method.name": "freeze", "method.layers": 4}),
        (
            {"finetuning_type": "freeze", "freeze_extra_modules": "embed_tokens,norm"},
            {"method.embeddings": True, "method.head": True},
        ),
        ({"dataset": "a, b"}, {"data.train": [{"source": "a", "weight": 1.0}, {"source": "b", "weight": 1.0}]}),
        ({"dataset": "a", "max_samples": 100}, {"data.train": "a#100"}),
        ({"dataset_dir": "my/data"}, {"data.info": "my/data"}),
        ({"eval_dataset": "held"}, {"data.evaluate": "held"}),
        ({"val_size": 0.1}, {"data.evaluate": 0.1}),
        ({"stage": "pt"}, {"task.name": "text", "data.on_overlength": "split"}),
        ({"neat_packing": True}, {"data.pack": True, "train.tokens_per_step": 8 * 2048}),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "cutoff_len": 512}, {"train.tokens_per_step": 4096}),
        ({"enable_thinking": False}, {"data.thinking": "empty"}),
        ({"learning_rate": "1.0e-4", "num_train_epochs": 3.0}, {"train.learning_rate": 1e-4, "train.epochs": 3.0}),
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
        ({"use_dora": True, "pissa_init": True}, "pissa_init: true: DoRA begins with B = 0 here, as LoRA does"),
        ({"pissa_iter": 4}, "pissa_iter: 4: says nothing without pissa_init"),
        ({"pissa_init": True, "lora_dropout": 0.1}, "lora_dropout: 0.1: PiSSA has no dropout here"),
        ({"finetuning_type": "freeze", "additional_target": "lm_head"}, "additional_target: lm_head: says nothing where freeze is trained"),
        ({"finetuning_type": "freeze", "freeze_trainable_modules": "self_attn"}, "freeze_trainable_modules: self_attn: whole blocks"),
        ({"train_on_prompt": True}, "train_on_prompt: true: every answer is learned and no question is"),
        ({"quantization_bit": 8}, "quantization_bit: 8: a base of 8 bits is not here"),
        ({"deepspeed": "ds.json"}, "deepspeed: ds.json: several devices"),
        ({"finetuning_type": "full", "lora_rank": 8}, "lora_rank: 8: says nothing where full is trained"),
        ({"hf_hub_token": "hf_abc"}, "hf_hub_token: (kept to yourself): where things are kept"),
        ({"cutof_len": 5}, "cutof_len: 5: no key of LLaMA-Factory that is known here; did you mean cutoff_len?"),
    ],
    ids=str,
)
def test_what_is_left_is_listed(given, words):
    assert any(line.startswith(words) for line in settings(**given).left)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stage": "dpo"}, "stage: DPO is not in this version"),
        ({"stage": "ppo"}, "stage: PPO"),
        ({"stage": "kto"}, "stage: KTO"),
        ({"stage": "rm"}, "stage: a reward model"),
        ({"finetuning_type": "oft"}, "finetuning_type: oft is no method of this version"),
        ({"adapter_name_or_path": "a,b"}, "adapter_name_or_path: one adapter is gone on from"),
        ({"dataset": None}, "no dataset: what is learned from?"),
        ({"dataset": None, "export_dir": "out"}, "export_dir: nothing is trained; `tunesmith merge DIR OUT`"),
        ({"do_train": False}, "do_train: nothing is trained"),
        ({"dataset_dir": "REMOTE:o/n"}, "dataset_dir: fetch dataset_info.json from o/n"),
        ({"cutoff_len": "long"}, "cutoff_len: a number is wanted, not long"),
        ({"model_name_or_path": None}, "no model_name_or_path: which model is tuned?"),
    ],
    ids=str,
)
def test_what_makes_no_run_is_refused(given, words):
    assert any(line.startswith(words) for line in translated(BASE | given).refused)


@pytest.fixture
def sizes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("a", 100), ("b", 400)):
        rows = [{"instruction": f"Say {i}", "output": "yes"} for i in range(count)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.json"}, "b": {"file_name": "b.json"}}))


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ({}, [1.0, 1.0]),
        ({"mix_strategy": "interleave_once"}, [1.0, 1.0]),
        ({"mix_strategy": "interleave_under", "interleave_probs": "0.5,0.5"}, [1.0, 0.25]),
        ({"mix_strategy": "interleave_over", "interleave_probs": [0.5, 0.5]}, [4.0, 1.0]),
        ({"mix_strategy": "interleave_over"}, [4.0, 1.0]),
        ({"mix_strategy": "interleave_under", "interleave_probs": "0.2,0.8"}, [1.0, 1.0]),
    ],
    ids=str,
)
def test_interleaving_becomes_weights(sizes, given, weights):
    t = settings(dataset="a,b", **given)
    assert [each["weight"] for each in t.settings["data.train"]] == weights


def test_a_number_of_rows_held_out_becomes_their_share(sizes):
    assert settings(dataset="a,b", val_size=50).settings["data.evaluate"] == 0.1
