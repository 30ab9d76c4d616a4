"""Names of TransformerLens that mean nothing for an encoder, and what to use instead."""

_BIDIRECTIONAL = "an encoder reads all positions at once and generates nothing; fill masks with analysis.fill_mask"
_UNCHANGED = "weights stay as they are in the checkpoint; analyses carry LayerNorm weights and biases themselves"
_NO_BOS = "the tokenizer adds its own special tokens"

# Members of TransformerLens' models that encoders here do not have.
NOT_ON_ENCODERS = {
    "cache_all": "use run_with_cache, or add_caching_hooks",
    "cache_some": "use run_with_cache(..., names_filter=...), or add_caching_hooks",
    "check_and_add_hook": "use add_hook",
    "check_hooks_to_add": "add_hook checks names before it attaches anything",
    "generate": _BIDIRECTIONAL,
    "loss_fn": 'call the model with return_type="loss" and labels=',
    "unembed_and_loss": 'call the model with return_type="loss" and labels=',
    "input_to_embed": "hook_full_embed is the stream in front of block 0: run_with_cache(..., stop_at_layer=0)",
    "set_tokenizer": "assign model.tokenizer, by a tokenizer, a folder or a name",
    "set_use_attn_in": "hook hook_q_input, hook_k_input and hook_v_input, or hook_resid_pre for all three",
    "set_ungroup_grouped_query_attention": "keys and values keep their own heads: cfg.n_key_value_heads",
    "process_weights_": _UNCHANGED,
    "fold_layer_norm": _UNCHANGED,
    "fold_value_biases": _UNCHANGED,
    "center_writing_weights": _UNCHANGED,
    "center_unembed": _UNCHANGED,
    "refactor_factored_attn_matrices": _UNCHANGED,
    "from_pretrained_no_processing": "from_pretrained never changes weights: call it instead",
    "load_and_process_state_dict": "use from_transformer_lens_state_dict, or load_state_dict",
    "load_sample_training_dataset": "load the data set with the datasets library",
    "sample_datapoint": "load the data set with the datasets library",
    "all_composition_scores": "use utils.composition_scores(model.OV[...], model.QK[...])",
    "accumulated_bias": "the biases are rows of cache.get_full_resid_decomposition, each under its label",
}

# Functions of TransformerLens' utils that mean nothing for an encoder.
_DEVICES = "a model lies on one device: model.to(device)"
NOT_IN_UTILS = {
    "get_cumsum_along_dim": "use tensor.cumsum(dim), or tensor.flip(dim).cumsum(dim).flip(dim) in reverse",
    "select_compatible_kwargs": "unknown arguments are refused, so nothing has to be dropped",
    "move_to_and_update_config": "model.to() keeps cfg.device and cfg.dtype in step",
    "apply_softcap": "no supported encoder caps its logits",
    "get_best_available_device": _DEVICES,
    "get_best_available_cuda_device": _DEVICES,
    "get_device_for_block_index": _DEVICES,
    "sample_logits": _BIDIRECTIONAL,
    "get_tokenizer_with_bos": _NO_BOS,
    "get_input_with_manually_prepended_bos": _NO_BOS,
    "get_tokens_with_bos_removed": _NO_BOS,
    "get_attention_mask": "to_tokens returns tokens, token types and the mask",
    "get_offset_position_ids": "there is no cache of past keys in an encoder",
    "tokenize_and_concatenate": "tokenise texts with to_tokens; texts are not joined, as [CLS] and [SEP] mark their ends",
    "get_dataset": "load data sets with the datasets library",
    "keep_single_column": "use the data set's own select_columns",
    "download_file_from_hf": "use huggingface_hub.hf_hub_download",
    "clear_huggingface_cache": "use the hub client's own command to clean its cache",
    "print_gpu_mem": "use torch.cuda.memory_allocated",
    "warn_if_mps": "devices are checked when a model moves: model.to('mps')",
    "get_rotary_pct_from_config": "the configuration is read by from_pretrained",
    "solu": "no supported encoder has this activation function",
    "gelu_new": "use torch.nn.functional.gelu(x, approximate='tanh')",
    "gelu_fast": "use torch.nn.functional.gelu(x, approximate='tanh')",
    "calc_fan_in_and_fan_out": "use torch.nn.init",
    "init_xavier_uniform_": "use torch.nn.init.xavier_uniform_",
    "init_xavier_normal_": "use torch.nn.init.xavier_normal_",
    "init_kaiming_uniform_": "use torch.nn.init.kaiming_uniform_",
    "init_kaiming_normal_": "use torch.nn.init.kaiming_normal_",
    "is_library_available": "use importlib.util.find_spec",
    "override_or_use_default_value": "arguments have plain defaults",
    "LocallyOverridenDefaults": "arguments have plain defaults",
    "USE_DEFAULT_VALUE": "arguments have plain defaults",
    "get_nested_attr": "use model.get_submodule or operator.attrgetter",
    "set_nested_attr": "set the attribute on model.get_submodule(path)",
    "check_structure": "compare with torch.triu, torch.tril or torch.equal",
}
