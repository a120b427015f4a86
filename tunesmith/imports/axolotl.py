"""Axolotl's YAML (`axolotl train FILE`): its common keys."""

import re

from tunesmith.imports import axolotl_sets as sets
from tunesmith.imports import trainer, updates
from tunesmith.imports.batch import Measured, tokens_per_step
from tunesmith.imports.translation import Translation, names

NAME = "Axolotl"
# keys that nobody else has
SIGNS = "base_model datasets sequence_len micro_batch_size adapter sample_packing lora_r lora_target_linear val_set_size"

CARRIED = {
    "lora_r": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "peft_use_rslora": "method.rslora",
    "loraplus_lr_ratio": "method.plus_ratio",
    "lora_model_dir": "model.adapter",
    "num_epochs": "train.epochs",
    "learning_rate": "train.learning_rate",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.clip",
    "seed": "train.seed",
    "save_total_limit": "train.keep",
    "output_dir": "out",
}
NEEDLESS = {
    "the model's own chat template is used, in training and in serving": "chat_template chat_template_jinja default_system_message",
    "every step is in events.jsonl, and the curve in loss.png": "logging_steps log_level include_tokens_per_second",
    "rows are read, tokenised in parallel and kept by themselves": "dataset_prepared_path dataset_processes dataset_num_proc "
    "dataset_keep_in_memory dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor dataloader_drop_last streaming "
    "dataset_load_format_for_save skip_prepare_dataset num_dataset_shards_to_save train_on_split",
    "packed documents never see one another, nothing is padded": "pad_to_sequence_len eval_sample_packing sample_packing_group_size "
    "sample_packing_bin_size sample_packing_eff_est total_num_tokens multipack_real_batches sample_packing_sequentially group_by_length "
    "flash_attn_cross_entropy flash_attn_rms_norm batch_flattening",
    "the loop's loss and attention are its own, fast without these": "flash_attention xformers_attention sdp_attention eager_attention "
    "flex_attention sage_attention attn_implementation liger_rope liger_rms_norm liger_glu_activation liger_layer_norm "
    "liger_fused_linear_cross_entropy liger_cross_entropy liger_use_token_scaling cut_cross_entropy unsloth_cross_entropy_loss "
    "unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o unsloth_rms_norm unsloth_rope lora_mlp_kernel lora_qkv_kernel lora_o_kernel plugins "
    "tf32 low_cpu_mem_usage gradient_checkpointing_kwargs torch_empty_cache_steps gc_steps lora_on_cpu",
    "transformers knows the classes by the model's own folder": "model_type tokenizer_type is_llama_derived_model is_mistral_derived_model "
    "is_falcon_derived_model is_qwen_derived_model tokenizer_use_fast tokenizer_legacy base_model_config processor_type",
    "no program of a model is ever run": "trust_remote_code",
    "safetensors is the only form": "save_safetensors",
    "evaluation keeps sums, never logits": "eval_batch_size eval_table_size eval_max_new_tokens eval_causal_lm_metrics",
    "the best weights by the evaluation loss are kept in adapter/best": "load_best_model_at_end metric_for_best_model greater_is_better",
    "nothing is checked in vain: rows that cannot be used are named": "strict",
    "the loss is a sum over tokens divided by their number over all micro-batches": "average_tokens_across_devices",
}
LEFT = {
    "several devices and machines are not in this version yet": "deepspeed fsdp fsdp_config fsdp_version ddp ddp_timeout ddp_bucket_cap_mb "
    "ddp_broadcast_buffers ddp_find_unused_parameters local_rank device device_map max_memory gpu_memory_limit tensor_parallel_size "
    "context_parallel_size dp_shard_size dp_replicate_size sequence_parallel_degree world_size ray_num_workers use_ray",
    "trackers are not served; events.jsonl holds all they would show": "wandb_project wandb_entity wandb_watch wandb_name wandb_run_id "
    "wandb_log_model wandb_mode use_wandb mlflow_tracking_uri mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts use_mlflow "
    "use_comet comet_api_key comet_workspace comet_project_name comet_experiment_key comet_mode comet_online comet_experiment_config "
    "use_tensorboard use_trackio trackio_project_name trackio_run_name profiler_steps profiler_steps_start",
    "nothing is uploaded; the run folder is yours to push": "hub_model_id hub_strategy hub_revision push_dataset_to_hub hf_use_auth_token "
    "push_to_hub hub_private_repo",
    "it would change the model or its tokenizer, which are left as they are": "special_tokens tokens added_tokens_overrides "
    "resize_token_embeddings_to_32x shrink_embeddings embeddings_skip_upcast overrides_of_model_config overrides_of_model_kwargs "
    "rope_scaling noisy_embedding_alpha reinit_weights expand_model fix_untrained_tokens tokenizer_config random_init_weights",
    "no setting here": "debug lora_fan_in_fan_out lora_target_parameters peft_layers_to_transform peft_layers_pattern "
    "peft loraplus_lr_embedding neftune_noise_alpha lr_scheduler_kwargs cosine_min_lr_ratio "
    "cosine_constant_lr_ratio lr_div_factor lr_groups optim_args optim_target_modules embedding_lr embedding_lr_scale "
    "torch_compile_backend torch_compile_mode auto_find_batch_size curriculum_sampling label_smoothing_factor save_only_model "
    "auto_resume_from_checkpoints excess_length_strategy min_sample_len remove_unused_columns dataset_exact_deduplication "
    "accelerator_config loss_watchdog_threshold loss_watchdog_patience bnb_config_kwargs",
    "AdamW's betas are 0.9 and 0.999, its epsilon 1e-8": "adam_beta1 adam_beta2 adam_beta3 adam_epsilon adam_epsilon2",
    "rows are always shuffled": "shuffle_merged_datasets shuffle_before_merging_datasets",
    "every answer is learned and no question is": "train_on_inputs",
    "a run goes on to its last step; the best weights are kept in best/": "early_stopping_patience",
    "adapters that are reset on the way are not here": "relora relora_steps relora_prune_ratio relora_cpu_offload jagged_restart_steps "
    "jagged_restart_warmup_steps jagged_restart_anneal_steps lisa_n_layers lisa_step_interval lisa_layers_attr",
    "only text is learned": "image_size image_resize_algorithm",
    "for preference training only, which is not in this version": "rl_beta dpo_beta dpo_use_weighting dpo_label_smoothing orpo_alpha "
    "kto_desirable_weight kto_undesirable_weight simpo_gamma trl reward_model process_reward_model",
    "`tunesmith evaluate DIR` scores answers after training": "do_causal_lm_eval do_bench_eval bench_dataset max_evals",
    "thinking in earlier turns is what the model's own chat template makes of it": "chat_template_kwargs",
}
READ = (
    "base_model revision_of_model adapter load_in_4bit load_in_8bit lora_target_linear lora_target_modules datasets "
    "pretraining_dataset test_datasets val_set_size sample_packing micro_batch_size gradient_accumulation_steps batch_size optimizer "
    "lr_scheduler warmup_ratio warmup_steps max_steps bf16 bfloat16 fp16 float16 saves_per_epoch evals_per_epoch save_steps "
    "save_strategy eval_steps eval_strategy evaluation_strategy gradient_checkpointing activation_offloading rl "
    "resume_from_checkpoint torch_compile merge_lora gptq sequence_len peft_use_dora peft_init_lora_weights lora_modules_to_save "
    "peft_trainable_token_indices unfrozen_parameters"
)
OF_LORA = "peft_use_dora peft_init_lora_weights lora_modules_to_save peft_trainable_token_indices"


def translate(t: Translation) -> None:
    """Fill the lists of `t`."""
    if (kind := t.word("rl")) is not None:
        t.refuse("rl", f"{kind} is not in this version; the chosen answers alone can be learned")
    if t.take("reward_model") or t.given.get("process_reward_model"):
        t.refused.append("reward_model: a reward model is not trained here")
    _model(t)
    sets.datasets(t)
    _method(t)
    trainer.steps(t)
    trainer.optimizer(t, "optimizer")
    trainer.schedule(t, "lr_scheduler", "cosine")
    trainer.warmup(t, 0.03)
    trainer.precision(t)
    trainer.saves(t)
    trainer.evaluations(t)
    trainer.recomputation(t)
    for key, what in (("saves_per_epoch", "checkpoints come"), ("evals_per_epoch", "evaluation comes")):
        if t.take(key):
            t.drop(key, f"{what} by default ten times in a run (train.checkpoint_every, evaluate.every count steps)")
    if t.has("resume_from_checkpoint"):
        t.drop("resume_from_checkpoint", "this file begins a run; `tunesmith resume DIR` goes on with one of ours")
    if "num_epochs" not in t.given:
        t.put("train.epochs", 1.0)
    packed = bool(t.take("sample_packing"))
    if "sample_packing" in t.given:
        t.put("data.pack", True, "sample_packing", said="packed documents never see one another here, and packed equals unpacked")
    seen = tokens_per_step(t, "micro_batch_size", 1, "sequence_len", 512, packed)
    _evaluation(t, seen)
    trainer.bad_rows(t, seen)
    t.finish(CARRIED, NEEDLESS, LEFT, READ)


def _model(t: Translation) -> None:
    source = t.word("base_model")
    if source is None:
        t.refused.append("no base_model: which model is tuned?")
        return
    revision = t.word("revision_of_model")
    name = f"{source}@{revision}" if revision else str(source)
    t.put("model.source", name, "base_model", *(["revision_of_model"] if revision else []))
    if t.take("load_in_4bit"):
        t.put("model.quantize", "nf4", "load_in_4bit")
    if t.take("load_in_8bit"):
        t.drop("load_in_8bit", "a base of 8 bits is not here; it is kept whole, model.quantize=nf4 takes a quarter of the memory")


def _method(t: Translation) -> None:
    adapter = t.word("adapter")
    if adapter in ("lora", "qlora"):
        if adapter == "qlora" and "model.quantize" not in t.settings:
            t.put("model.quantize", "nf4", "adapter")
        updates.kind(t, "peft_use_dora", "peft_init_lora_weights", CARRIED, "adapter")
        updates.beside(t, "lora_modules_to_save")
        updates.tokens(t, "peft_trainable_token_indices")
        if t.has("unfrozen_parameters"):
            t.drop("unfrozen_parameters", "says nothing beside an adapter, over which the whole base is frozen")
        wanted = names(t.take("lora_target_modules"))
        if t.take("lora_target_linear") or wanted in (["all-linear"], ["all"]):
            t.put("method.targets", "all", "lora_target_linear" if t.has("lora_target_linear") else "lora_target_modules")
        elif any(re.search(r"[\\^$|(*]", name) for name in wanted):
            t.drop("lora_target_modules", "endings of module paths are written here, not patterns; all linear layers are tuned")
        elif wanted:
            t.put("method.targets", wanted, "lora_target_modules")
    elif adapter is None:
        _whole(t)
        for key in [key for key in (*CARRIED, *OF_LORA.split()) if CARRIED.get(key, "method.").startswith("method.") and key in t.given]:
            t.drop(key, "says nothing where every weight is trained")
    else:
        t.refuse("adapter", f"{adapter} is no method of this version; lora, qlora and none (full) are")


def _whole(t: Translation) -> None:
    """Every weight, or those that `unfrozen_parameters` names: patterns that a name begins with, some for a part of the rows."""
    said, wanted = ["adapter"] if "adapter" in t.given else [], names(t.take("unfrozen_parameters"))
    parts = [name for name in wanted if re.search(r"\[\d*:\d*\]$", name)]
    if not wanted or parts:
        t.put("method.name", "full", *said)
        if parts:
            t.drop("unfrozen_parameters", "rows of a tensor are not trained alone; every weight is")
        return
    t.put("method.name", "freeze", *said)
    t.put("method.pattern", "|".join(f"(?:{name}).*" for name in wanted), "unfrozen_parameters")


def _evaluation(t: Translation, seen: Measured | str) -> None:
    if tests := sets.listed(t.take("test_datasets")):
        more = f"one evaluation set here; {len(tests) - 1} left out" if len(tests) > 1 else ""
        t.put("data.evaluate", sets.source(t, "test_datasets.0", tests[0]), "test_datasets", said=more)
        return
    trainer.held_out(t, "val_set_size", seen)
