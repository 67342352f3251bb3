"""The keys of TRL 1.16 (with those of transformers' TrainingArguments) that need no computation."""

from janus_jax.config.imports.training_keys import ATTENTION, HUB, LOGGING, LORA, MESH, QUANTIZED, SPEED

MARKS = {
    "sft": frozenset(
        "packing packing_strategy eval_packing completion_only_loss assistant_only_loss dataset_text_field "
        "max_seq_length shuffle_dataset".split()
    ),
    "dpo": frozenset(
        "precompute_ref_log_probs precompute_ref_batch_size loss_weights ld_alpha f_divergence_type label_smoothing "
        "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps use_weighting discopop_tau "
        "f_alpha_divergence_coef".split()
    ),
    "orpo": frozenset(["max_completion_length", "generate_during_eval", "padding_value"]),
    "rm": frozenset(["center_rewards_coefficient"]),
}
"""Objective -> keys that only its trainer has."""

NOT_NEEDED = {
    ATTENTION: "attn_implementation",
    MESH: "deepspeed fsdp fsdp_config parallelism_config accelerator_config local_rank ddp_find_unused_parameters "
    "num_processes num_machines machine_rank main_process_ip main_process_port gpu_ids accelerate_config "
    "ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout use_cpu no_cuda use_mps_device",
    LOGGING: "run_name project trackio_space_id trackio_bucket_id trackio_static_space_id logging_dir logging_strategy "
    "logging_first_step log_on_each_node logging_nan_inf_filter log_level log_level_replica disable_tqdm "
    "include_num_input_tokens_seen include_tokens_per_second log_completions env",
    HUB: "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision "
    "push_to_hub_token",
    SPEED: "torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config tf32 use_cache "
    "torch_empty_cache_steps gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs "
    "activation_offloading full_determinism auto_find_batch_size dataloader_num_workers dataloader_pin_memory "
    "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order "
    "group_by_length length_column_name skip_memory_metrics padding_free pad_to_multiple_of dataset_num_proc debug "
    "precompute_ref_batch_size bf16_full_eval fp16_full_eval",
    "which files the tool reads and writes": "save_only_model save_safetensors save_on_each_node overwrite_output_dir "
    "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint enable_jit_checkpoint "
    "remove_unused_columns label_names model_revision trust_remote_code",
    "evaluates held-out data only": "per_device_eval_batch_size eval_accumulation_steps prediction_loss_only "
    "eval_delay eval_do_concat_batches eval_use_gather_object include_for_metrics batch_eval_metrics "
    "metric_for_best_model greater_is_better do_train do_eval do_predict eval_packing generate_during_eval",
    "no dropout here": "disable_dropout",
    "masks come from lengths, never from the padding's id": "pad_token padding_value",
    "when the log-probs of the reference are computed; reference.mode says it here": "precompute_ref_log_probs",
    "batches are drawn anew for each epoch": "data_seed shuffle_dataset train_sampling_strategy",
    "for data with one text; janus data build reads prompt and output": "dataset_text_field",
    "for models that are not here": "is_encoder_decoder ignore_bias_buffers router_aux_loss_coef",
}
UNSUPPORTED = {
    LORA: "use_peft",
    QUANTIZED: "load_in_8bit load_in_4bit",
    "another loss": "label_smoothing_factor ld_alpha use_weighting rpo_alpha use_logits_to_keep",
    "another divergence than reverse KL": "f_divergence_type",
    "the reference stays as it is here": "sync_ref_model",
    "noise on embeddings is not here": "neftune_noise_alpha",
    "half precision of 5 exponent bits is not here": "fp16",
    "an option that is not here": "optim_args optim_target_modules model_init_kwargs dataset_kwargs eos_token "
    "dataset_config dataset_streaming streaming",
    "the last, smaller batch is kept here": "dataloader_drop_last",
    "one limit for prompt and response here": "max_prompt_length",
    "the loss is for one recipe's data": "dataset_batch_size num_of_sequences",
}
NEUTRAL = {"f_divergence_type": lambda value: value == "reverse_kl"}
LORA_DETAILS = (
    "lora_r lora_alpha lora_dropout lora_target_modules lora_target_parameters lora_modules_to_save lora_task_type "
    "use_rslora use_dora bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage"
)
OF_OBJECTIVES = (
    "beta loss_type loss_weights label_smoothing center_rewards_coefficient completion_only_loss assistant_only_loss "
    "packing packing_strategy f_alpha_divergence_coef discopop_tau ref_model_mixup_alpha ref_model_sync_steps"
)
"""Keys that the trainers of some objectives have; what is left of them is another's."""

ON = frozenset(
    "gradient_checkpointing disable_dropout average_tokens_across_devices log_on_each_node logging_nan_inf_filter "
    "eval_do_concat_batches dataloader_pin_memory dataloader_in_order remove_unused_columns skip_memory_metrics".split()
)
"""Switches that are on by default: for these alone the parser of transformers has an option `--no_KEY`."""

_READ = (
    "output_dir model_name_or_path per_device_train_batch_size gradient_accumulation_steps max_length max_seq_length "
    "learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio num_train_epochs max_steps optim "
    "adam_beta1 adam_beta2 adam_epsilon weight_decay seed max_grad_norm bf16 dtype torch_dtype gradient_checkpointing "
    "average_tokens_across_devices save_strategy save_steps save_total_limit eval_strategy eval_steps eval_on_start "
    "logging_steps report_to load_best_model_at_end dataset_name dataset_train_split dataset_test_split datasets "
    "chat_template_path truncation_mode max_completion_length test_split_size"
)


def known() -> list[str]:
    """Every key that an import has an answer to."""
    texts = [*NOT_NEEDED.values(), *UNSUPPORTED.values(), LORA_DETAILS, OF_OBJECTIVES, _READ]
    return " ".join(texts).split()
