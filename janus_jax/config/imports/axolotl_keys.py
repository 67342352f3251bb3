"""The keys of axolotl 0.21 that need no computation, by what becomes of them."""

import re

from janus_jax.config.imports.training_keys import ATTENTION, HUB, LOGGING, LORA, MESH, QUANTIZED, SPEED

TOOL = "axolotl 0.21"

NOT_NEEDED = {
    ATTENTION: "flash_attention sdp_attention flex_attention flex_attn_compile_kwargs xformers_attention "
    "sage_attention eager_attention attn_implementation flash_attn_cross_entropy flash_attn_fuse_mlp "
    "flash_attn_rms_norm flash_optimum gemma4_hybrid_attn_impl large_head_attention flash_attn_d512 sdpa_varlen "
    "fused_attn_kernel fa_varlen_kwargs_in_collator",
    MESH: "deepspeed deepcompile fsdp fsdp_config fsdp_version fsdp_final_state_dict_type dp_shard_size "
    "dp_replicate_size heads_k_stride ring_attn_func ddp ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers "
    "ddp_find_unused_parameters local_rank world_size device device_map max_memory gpu_memory_limit use_ray "
    "ray_run_name ray_num_workers resources_per_worker accelerator_config capabilities env_capabilities "
    "expert_parallel_size expert_parallel_backend expert_parallel_num_nvl_bytes expert_parallel_num_rdma_bytes "
    "expert_parallel_token_capacity expert_parallel_fallback_on_unsupported",
    LOGGING: "wandb_project wandb_entity wandb_watch wandb_name wandb_run_id wandb_mode wandb_log_model use_mlflow "
    "mlflow_tracking_uri mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts use_comet comet_api_key "
    "comet_workspace comet_project_name comet_experiment_key comet_mode comet_online comet_experiment_config "
    "use_trackio trackio_project_name trackio_run_name trackio_space_id use_otel_metrics otel_metrics_host "
    "otel_metrics_port include_tokens_per_second include_tkps logging_nan_inf_filter use_swanlab swanlab_project "
    "swanlab_experiment_name swanlab_description swanlab_mode swanlab_workspace swanlab_api_key swanlab_log_model "
    "swanlab_web_host swanlab_api_host swanlab_lark_webhook_url swanlab_lark_secret swanlab_log_completions "
    "swanlab_completion_log_interval swanlab_completion_max_buffer",
    "ends a run whose loss stays high": "loss_watchdog_threshold loss_watchdog_patience",
    "for models with experts or of other families, which are not here": "use_scattermoe use_sonicmoe expert_backend "
    "moe_grouped_backend moe_dequant_chunk_size moe_bnb_fast use_dsv4_kernels use_glm_dsa_kernels "
    "dsv4_fp8_nonexpert_mode dsv4_fp8_lora_kernel dsv4_shared_mlp_lora_kernel dsv4_bf16_all dsv4_fp4_grouped_mode "
    "gemma4_fp8_nonexpert gemma4_nf4_nonexpert nvfp4_merge_aware_start_step nonexpert_quantization",
    HUB: "hub_model_id hub_strategy hub_revision push_dataset_to_hub hf_use_auth_token save_safetensors",
    SPEED: "torch_compile torch_compile_backend torch_compile_mode torch_compile_regional torch_compile_options tf32 "
    "low_cpu_mem_usage gc_steps gc_collect_steps torch_empty_cache_steps activation_offloading layer_offloading "
    "gradient_checkpointing_kwargs selective_checkpointing tiled_mlp tiled_mlp_num_shards tiled_mlp_use_original_mlp "
    "chunked_cross_entropy chunked_cross_entropy_num_chunks dataloader_pin_memory dataloader_num_workers "
    "dataloader_prefetch_factor batch_flattening dpo_padding_free dpo_use_liger_kernel use_kernels "
    "experts_implementation ple_cpu_offload lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel "
    "experimental_skip_move_to_device embeddings_skip_upcast full_determinism auto_find_batch_size "
    "liger_rope liger_rms_norm liger_rms_norm_gated liger_layer_norm liger_glu_activation liger_swiglu "
    "liger_cross_entropy liger_fused_linear_cross_entropy cut_cross_entropy",
    "janus data build prepares data": "dataset_prepared_path dataset_shard_num dataset_shard_idx skip_prepare_dataset "
    "num_dataset_shards_to_save dataset_processes dataset_num_proc dataset_keep_in_memory is_preprocess "
    "preprocess_iterable streaming_multipack_buffer_size sample_packing_mp_start_method total_num_tokens "
    "total_supervised_tokens sample_packing_eff_est remove_unused_columns shuffle_merged_datasets "
    "shuffle_before_merging_datasets",
    "packing here always fills rows of one length, and segments see only themselves": "pad_to_sequence_len "
    "pad_to_multiple_of sample_packing_group_size sample_packing_bin_size multipack_real_batches eval_sample_packing "
    "sample_packing_drop_attention_mask",
    "which files the tool reads and writes": "strict resume_from_checkpoint auto_resume_from_checkpoints "
    "save_only_model save_first_step dynamic_checkpoint axolotl_config_path debug tokenizer_save_jinja_files "
    "merge_method export trust_remote_code processor_kwargs tokenizer_use_fast tokenizer_legacy base_model_config "
    "tokenizer_config model_revision revision_of_model type_of_model is_falcon_derived_model is_llama_derived_model "
    "is_mistral_derived_model is_qwen_derived_model",
    "no effect on training; `samples` writes answers while a run trains": "eval_table_size eval_max_new_tokens "
    "generate_samples num_generation_samples generation_max_new_tokens generation_temperature generation_top_p "
    "generation_top_k generation_prompt_ratio generation_do_sample gradio_title gradio_share gradio_server_name "
    "gradio_server_port gradio_max_new_tokens gradio_temperature do_causal_lm_eval eval_causal_lm_metrics "
    "do_bench_eval bench_dataset bench_split lm_eval_tasks lm_eval_batch_size lm_eval_post_train lm_eval_model "
    "profiler_steps profiler_steps_start sync_profiler_steps "
    "sync_profiler_start_step",
    "evaluates held-out data only": "eval_batch_size eval_sequence_len metric_for_best_model greater_is_better "
    "load_best_model_at_end",
    "when the log-probs of the reference are computed; reference.mode says it here": "precompute_ref_log_probs",
}
"""Reason -> keys."""

UNSUPPORTED = {
    LORA: "adapter lora_model_dir peft_use_dora loraplus_lr_ratio loraplus_lr_embedding relora relora_prune_ratio "
    "relora_prune_method relora_cpu_offload mixlora_num_experts lisa_n_layers lisa_step_interval lisa_layers_attribute",
    QUANTIZED: "load_in_8bit load_in_4bit gptq qat quantization fp8 fp8_config "
    "fp8_enable_fsdp_float8_all_gather model_quantization_config "
    "model_quantization_config_kwargs use_onebitllms quantize_moe_experts",
    "the model is changed, and there is no switch for it here": "rope_scaling model_config overrides_of_model_config "
    "model_kwargs overrides_of_model_kwargs cls_model_config resize_token_embeddings_to_32x mean_resizing_embeddings "
    "shrink_embeddings reinit_weights fix_untrained_tokens tokens added_tokens_overrides scaling_softmax use_pose "
    "pose_num_chunks pose_max_context_len pose_split_on_token_ids fp32_norms fp32_norm_classes "
    "llama4_linearized_experts llmcompressor dense_mixer mora",
    "only some weights are trained": "unfrozen_parameters freeze_mm_modules spectrum_top_fraction spectrum_model_name",
    "weights have one learning rate here": "embedding_lr embedding_lr_scale lr_groups",
    "noise on embeddings is not here": "neftune_noise_alpha noisy_embedding_alpha",
    "another loss": "use_eaft use_dft dpo_use_weighting dpo_ld_alpha dpo_norm_loss rpo_alpha diffusion_lm "
    "process_reward_model ebft trainer_cls diffusion liger_use_token_scaling kd_trainer kd_ce_alpha kd_alpha "
    "kd_temperature kd_beta kd_normalize_topk kd_online_server_base_url kd_online_topk kd_online_server "
    "kd_online_timeout kd_temperature_min",
    "a schedule that is not here": "cosine_constant_lr_ratio lr_quadratic_warmup lr_div_factor jagged_restart_steps "
    "jagged_restart_warmup_steps jagged_restart_anneal_steps curriculum_sampling",
    "an option of other optimizers, or one that is not here": "optim_args optim_target_modules torchdistx_path "
    "adam_epsilon2 adam_beta3 dion_lr dion_momentum grokfast_alpha grokfast_lamb",
    "data are read in another way": "pretraining_dataset pretraining_sample_concatenation streaming min_sample_len "
    "max_prompt_len sample_packing_sequentially group_by_length balance_labels s2_attention max_packed_sequence_len "
    "processor_type image_size image_resize_algorithm role_boundaries tokenizer_use_mistral_common",
    "half precision of 5 exponent bits is not here": "fp16 float16",
    "the last, smaller batch is kept here": "dataloader_drop_last",
}
"""Reason -> keys that change the result, unless they are off."""

LORA_DETAILS = (
    "nf4_backend nvfp4_merge_aware lora_r lora_alpha lora_fan_in_fan_out lora_target_modules lora_target_parameters "
    "lora_target_linear lora_modules_to_save lora_rank_pattern lora_alpha_pattern lora_dropout loftq_config "
    "peft_layers_to_transform peft_layers_pattern peft peft_use_rslora peft_layer_replication peft_init_lora_weights "
    "peft_trainable_token_indices peft_ensure_weight_tying lora_fp32_gradients peft_autocast_adapter_dtype "
    "qlora_sharded_model_loading lora_on_cpu bnb_config_kwargs merge_lora mixlora_top_k mixlora_router_aux_loss_coef "
    "mixlora_router_init_range mixlora_jitter_noise mixlora_expert_lora_r mixlora_expert_lora_alpha "
    "mixlora_expert_lora_dropout"
)
"""Keys that only `adapter` gives a meaning."""

OF_OTHERS = (
    "kto_desirable_weight kto_undesirable_weight vllm dion_rank_fraction dion_rank_multiple_of qgalore_rank "
    "qgalore_update_proj_gap qgalore_scale qgalore_proj_type qgalore_proj_quant qgalore_proj_bits "
    "qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size scaling_softmax_factor "
    "scaling_softmax_bias eaft_alpha eaft_k label_balance_window_optim_steps pretrain_multipack_buffer_size "
    "pretrain_multipack_attn num_labels dpo_use_logits_to_keep dpo_generate_during_eval chat_template_kwargs"
)
"""Keys of objectives, optimizers and modes that this recipe does not use."""

EXCLUSIVE = (
    ("warmup_steps", "warmup_ratio"),
    ("save_steps", "saves_per_epoch"),
    ("eval_steps", "evals_per_epoch"),
    ("test_datasets", "val_set_size"),
)
"""Keys of which the tool takes one alone."""
EIGHT_BITS = ("paged_adamw_8bit", "adamw_8bit", "adamw_bnb_8bit")
"""Optimizers that the tool does not take with tensor parallelism."""

MODELS = ("MistralForCausalLM", "LlamaForCausalLM", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
TOKENIZERS = ("AutoTokenizer", "LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast")

DATASET_NOT_NEEDED = {
    "janus data build reads files and hub ids": "ds_type trust_remote_code preprocess_shards field_tools data_files"
}
DATASET_UNSUPPORTED = {
    "a part of a data set": "shards shards_idx weight",
    "other tokens count in the loss": "roles_to_train train_on_eos train_on_eot message_field_training "
    "message_field_training_detail",
    "prompts are changed": "drop_system_message input_transform split_thinking field_thinking template_thinking_key "
    "logprobs_field temperature",
    "janus data build reads the newest revision, and the default configuration": "revision name",
}
DATASET_NEUTRAL = {
    "roles_to_train": lambda value: value == ["assistant"],
    "train_on_eos": lambda value: value == "turn",
    "train_on_eot": lambda value: value == "turn",
    "weight": lambda value: value == 1,
}
DATASET_SAME = (
    ("roles_to_train", ["gpt"], "another name of assistant, the default"),
    ("train_on_eos", "last", "a record is one exchange here, so that the last turn is the only one"),
    ("train_on_eot", "last", "a record is one exchange here, so that the last turn is the only one"),
)
"""Key of a data set, its value, and why that means what the default does."""
NEUTRAL = {
    "adapter": lambda value: not value,
    "process_reward_model": lambda value: not value,
    "mean_resizing_embeddings": lambda value: not value,
}
TYPES: dict[str, str | None] = {
    "chatml": "chatml", "llama3": None, "zephyr": None, "alpaca": None, "alpaca_chat": None, "alpaca_instruct": None,
    "alpaca_w_system": None, "sharegpt": None, "passthrough": "plain",
}  # fmt: skip
"""First part of a data set's `type` -> our template for its prompts; None: none of ours."""
WHOLE_TEXTS = {
    "completion": "every token counts in the loss there, responses alone here",
    "pretrain": "every token counts in the loss there, responses alone here",
    "input_output": "each part of a record says whether it counts in the loss",
}
"""First part of a data set's `type` that has no prompts and responses -> why it is not here."""
HARMLESS = re.compile(r"\.(liger|cut_cross_entropy|kernels|swanlab|lm_eval|expert_parallel)\.")
"""In names of plugins: those that leave the results as they are."""
CHAT_TEMPLATES: dict[str, str | None] = {"chatml": "chatml", "mistral_v1": None}
"""Name of a chat template -> ours."""
