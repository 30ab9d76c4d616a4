"""Audio checkpoints on disk: old and new spellings of names and configurations, what comes with them, what is refused."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from encoderlens import HookedAudioEncoder, HookedEncoder
from encoderlens.errors import ConfigError, InputError, TaskError, UnknownArchitectureError, WeightsError
from tests.checkpoints import (
    FORMATS,
    assert_same_parameters,
    assert_same_tensors,
    edit_config,
    edit_tensors,
    read_tensors,
    rename_tensors,
    save_tiny,
)
from tests.parity import assert_parity
from tests.speech import CLASSES, snippets
from tests.tiny import SPEECH, tiny_hf

Saved = Callable[[str], tuple[Any, Path]]
FolderOf = Callable[[str], Path]


def load(source: Any, **options: Any) -> HookedAudioEncoder:
    if isinstance(source, Path | str):
        return HookedAudioEncoder.from_pretrained(source, device="cpu", **options)
    return HookedAudioEncoder.from_pretrained(hf_model=source, device="cpu", **options)


# What loads


@pytest.mark.parametrize("hf_class", CLASSES)
def test_a_folder_gives_what_the_model_in_memory_gives(hf_class: str, saved: Saved) -> None:
    hf_model, folder = saved(hf_class)
    from_folder, from_memory = load(folder), load(hf_model)
    assert_same_parameters(from_folder, from_memory)
    assert from_folder.cfg.original_architecture == hf_class
    assert from_folder.cfg.model_name == str(folder)
    assert from_folder.task == from_memory.task
    assert not from_folder.training


def _weight_norm_of_old(name: str) -> str:
    """As before PyTorch 2: every checkpoint of that time has these names."""
    new = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for spelled, old in new.items():
        name = name.replace(spelled, old)
    return name


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("hf_class", ["HubertModel", "Wav2Vec2ForCTC"])
def test_every_format_under_old_names_is_bit_identical(kind: str, hf_class: str, saved: Saved, tmp_path: Path) -> None:
    hf_model, folder = saved(hf_class)
    shutil.copy(folder / "config.json", tmp_path)
    old = {_weight_norm_of_old(name): tensor for name, tensor in read_tensors(folder).items()}
    assert sum(name.endswith(("weight_g", "weight_v")) for name in old) == 2
    FORMATS[kind](old, tmp_path)
    model = load(tmp_path)
    assert_same_parameters(model, load(hf_model))
    assert_same_tensors(model.to_hf().state_dict(), hf_model.state_dict())


def test_shards_written_by_transformers(tmp_path: Path) -> None:
    hf_model = tiny_hf("Wav2Vec2ForPreTraining")
    hf_model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model = load(tmp_path)
    assert_same_parameters(model, load(hf_model))
    assert_same_tensors(model.to_hf().state_dict(), hf_model.state_dict())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_and_wanted_dtype_are_independent(stored: torch.dtype, saved: Saved, tmp_path: Path) -> None:
    hf_model, folder = saved("Wav2Vec2ForPreTraining")
    shutil.copy(folder / "config.json", tmp_path)
    FORMATS["safetensors"]({name: tensor.to(stored) for name, tensor in read_tensors(folder).items()}, tmp_path)
    model = load(tmp_path, dtype=torch.float64)
    assert torch.equal(
        model.frontend[0].weight, hf_model.wav2vec2.feature_extractor.conv_layers[0].conv.weight.to(stored).double()
    )
    codes = model.to_hf().quantizer.codevectors
    assert torch.equal(codes, hf_model.quantizer.codevectors.to(stored).double())


@pytest.mark.parametrize("hf_class", ["HubertModel", "Wav2Vec2Model"])
def test_a_base_model_saved_with_the_prefix(hf_class: str, folder_of: FolderOf, saved: Saved) -> None:
    folder = folder_of(hf_class)
    rename_tensors(folder, lambda name: saved(hf_class)[0].base_model_prefix + "." + name)
    assert_same_parameters(load(folder), load(saved(hf_class)[0]))


@pytest.mark.parametrize(
    ("hf_class", "inferred"), [(name, name if name != "Wav2Vec2ForPreTraining" else "Wav2Vec2Model") for name in CLASSES]
)
def test_a_class_that_is_not_declared_is_inferred_from_the_weights(
    hf_class: str, inferred: str, folder_of: FolderOf, saved: Saved
) -> None:
    folder = folder_of(hf_class)
    edit_config(folder, architectures=None)
    model = load(folder)
    assert model.cfg.original_architecture == inferred
    assert_same_parameters(model, load(saved(hf_class)[0]))


@pytest.mark.parametrize("hf_class", [name for name in CLASSES if not name.endswith("Model")])
def test_just_the_encoder(hf_class: str, folder_of: FolderOf, caplog: pytest.LogCaptureFixture) -> None:
    """Also of classes that have another head, such as voice conversion's HubertModelWithFinalProj."""
    folder = folder_of(hf_class)
    edit_tensors(folder, final_proj__weight=torch.ones(5, 24))
    edit_config(folder, architectures=["ModelWithFinalProj"])
    with pytest.raises(UnknownArchitectureError, match=r"declares ModelWithFinalProj, which is not supported.*task='encoder'"):
        load(folder)
    with caplog.at_level(logging.WARNING, "encoderlens"):
        model = load(folder, task="encoder")
    assert not model.heads
    assert "final_proj.weight" in model.load_report.left
    assert "final_proj.weight" in caplog.text
    assert model(snippets()).shape == (3, 34, 24)


# The vector that stands for masked frames


@pytest.mark.parametrize("hf_class", CLASSES)
def test_a_checkpoint_may_lack_the_mask_vector(hf_class: str, folder_of: FolderOf, caplog: pytest.LogCaptureFixture) -> None:
    """facebook/wav2vec2-base-960h does."""
    folder = folder_of(hf_class)
    (name,) = [name for name in read_tensors(folder) if name.endswith("masked_spec_embed")]
    edit_tensors(folder, **{name.replace(".", "__"): None})
    model = load(folder)
    assert model.embed.mask_embed is None
    with pytest.raises(InputError, match="the checkpoint has no vector that stands for masked frames"):
        model(snippets(), mask_time_indices=torch.zeros(3, 34, dtype=torch.bool))
    with caplog.at_level(logging.WARNING, "encoderlens"):
        back = model.to_hf()
    (message,) = caplog.messages
    assert message == f"{hf_class} has {name}, which this model lacks; it is initialised at random"
    theirs = read_tensors(folder)
    assert_same_tensors({key: back.state_dict()[key] for key in theirs}, theirs)


@pytest.mark.parametrize("hf_class", CLASSES)
def test_the_mask_vector_is_kept_though_nothing_is_masked_in_training(
    hf_class: str, folder_of: FolderOf, saved: Saved, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(hf_class)
    edit_config(folder, mask_time_prob=0.0, mask_feature_prob=0.0)
    model, masked = load(folder), torch.arange(34).expand(3, -1) % 3 == 0
    assert_same_parameters(model, load(saved(hf_class)[0]))
    assert torch.equal(
        model(snippets(), mask_time_indices=masked), load(saved(hf_class)[0])(snippets(), mask_time_indices=masked)
    )
    with caplog.at_level(logging.WARNING, "encoderlens"):
        back = model.to_hf()
    (message,) = caplog.messages
    assert message.startswith(f"{hf_class} has no place for ")
    assert "masked_spec_embed; they are not in the result" in message
    assert back.config.mask_time_prob == 0


# Configurations as they have lain on the hub since 2021, but for the sizes

OLD: dict[str, Any] = {
    "apply_spec_augment": True,
    "attention_dropout": 0.1,
    "bos_token_id": 1,
    "ctc_loss_reduction": "sum",
    "ctc_zero_infinity": False,
    "eos_token_id": 2,
    "feat_extract_activation": "gelu",
    "feat_proj_dropout": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "mask_feature_length": 10,
    "mask_feature_prob": 0.0,
    "mask_time_length": 10,
    "mask_time_prob": 0.05,
    "num_feat_extract_layers": 3,
    "pad_token_id": 0,
}
BASE = {"conv_bias": False, "do_stable_layer_norm": False, "feat_extract_norm": "group"}
LARGE = {"conv_bias": True, "do_stable_layer_norm": True, "feat_extract_norm": "layer"}
DROPPED = {"activation_dropout": 0.1, "final_dropout": 0.1, "layerdrop": 0.1}
LEFT = {"feat_extract_dropout": 0.0, "gradient_checkpointing": False, "hidden_dropout_prob": 0.1}
OBJECTIVE = {
    "codevector_dim": 8,
    "contrastive_logits_temperature": 0.1,
    "diversity_loss_weight": 0.1,
    "feat_quantizer_dropout": 0.0,
    "num_codevector_groups": 2,
    "num_codevectors_per_group": 13,
    "num_negatives": 100,
    "proj_codevector_dim": 6,
}
FAIRSEQ = {
    "freeze_feat_extract_train": True,
    "mask_channel_length": 10,
    "mask_channel_min_space": 1,
    "mask_channel_other": 0.0,
    "mask_channel_prob": 0.0,
    "mask_channel_selection": "static",
    "mask_time_min_space": 1,
    "mask_time_other": 0.0,
    "mask_time_selection": "static",
    "no_mask_channel_overlap": False,
    "no_mask_time_overlap": False,
}
FAIRSEQ_FEATURES = {
    "mask_feature_min_space": 1,
    "mask_feature_other": 0.0,
    "mask_feature_selection": "static",
    "no_mask_feature_overlap": False,
}
ADAPTERS = {
    "adapter_kernel_size": 3,
    "adapter_stride": 2,
    "add_adapter": False,
    "num_adapter_layers": 3,
    "output_hidden_size": 24,
    "tdnn_dilation": [1, 2, 3, 1, 1],
    "tdnn_dim": [512, 512, 512, 512, 1500],
    "tdnn_kernel": [5, 3, 3, 1, 1],
    "xvector_output_dim": 512,
}
WORDS = ("yes", "no", "up", "down", "left")
KEYWORDS = {
    "finetuning_task": "superb_ks",
    "id2label": {str(index): word for index, word in enumerate(WORDS)},
    "label2id": {word: index for index, word in enumerate(WORDS)},
    "use_weighted_layer_sum": True,
}
REAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "facebook/hubert-base-ls960": (
        "hubert",
        "HubertModel",
        BASE | DROPPED | LEFT | {"tokenizer_class": "Wav2Vec2CTCTokenizer", "transformers_version": "4.10.0.dev0"},
    ),
    "facebook/hubert-large-ls960-ft": (
        "hubert",
        "HubertForCTC",
        LARGE | DROPPED | LEFT | {"diversity_loss_weight": 0.1, "transformers_version": "4.9.0.dev0"},
    ),
    "a keyword spotter of SUPERB": (
        "hubert",
        "HubertForSequenceClassification",
        LARGE | DROPPED | LEFT | KEYWORDS,
    ),
    "facebook/wav2vec2-base": (
        "wav2vec2",
        "Wav2Vec2ForPreTraining",
        BASE
        | OBJECTIVE
        | FAIRSEQ
        | {"activation_dropout": 0.0, "final_dropout": 0.0, "layerdrop": 0.0, "torch_dtype": "float32"},
    ),
    "facebook/wav2vec2-base-960h": ("wav2vec2", "Wav2Vec2ForCTC", BASE | DROPPED | LEFT | OBJECTIVE | ADAPTERS),
    "one that LeBenchmark converted": (
        "wav2vec2",
        "Wav2Vec2Model",
        LARGE | OBJECTIVE | FAIRSEQ | FAIRSEQ_FEATURES | {"layerdrop": 0.0, "gradient_checkpointing": True},
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_configurations_of_real_checkpoints(name: str, tmp_path: Path) -> None:
    model_type, hf_class, values = REAL[name]
    sizes = {key: value for key, value in SPEECH.items() if key != "num_labels"}
    written = OLD | values | sizes | {"model_type": model_type, "architectures": [hf_class], "_name_or_path": name}
    hf_model = save_tiny(
        hf_class, tmp_path, **{key: value for key, value in values.items() if key in (*BASE, "use_weighted_layer_sum")}
    )
    (tmp_path / "config.json").write_text(json.dumps(written))
    model = load(tmp_path)
    assert_same_parameters(model, load(hf_model))
    assert model.cfg.encoder.layerdrop == values.get("layerdrop", 0.1)
    with torch.no_grad():
        waves = torch.stack([snippets()[0], snippets()[0].flip(0)])
        batch = model.prepare(waves)
        assert_parity(model(batch), hf_model.base_model(batch.waves).last_hidden_state)
    back = model.to_hf()
    assert type(back).__name__ == hf_class
    assert_same_tensors(back.state_dict(), hf_model.state_dict())
    ignored = {"_name_or_path", "architectures", "dtype", "gradient_checkpointing", "transformers_version"}
    ours, theirs = back.config.to_dict(), transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {key: value for key, value in ours.items() if key not in ignored} == {
        key: value for key, value in theirs.items() if key not in ignored
    }
    if "id2label" in values:
        assert model.heads["sequence_classification"].labels == WORDS


# What is refused


@pytest.mark.parametrize(
    ("hf_class", "values", "message"),
    [
        ("Wav2Vec2ForCTC", {"add_adapter": True}, r"config\.json: add_adapter=True is not implemented; only False is"),
        ("Wav2Vec2ForCTC", {"adapter_attn_dim": 16}, r"adapter_attn_dim=16 is not implemented; only None is"),
        ("HubertForCTC", {"adapter_attn_dim": 16}, r"adapter_attn_dim=16 is not implemented; only None is"),
        ("HubertModel", {"feat_extract_norm": "batch"}, r"feat_extract_norm='batch' is not implemented; 'group' and"),
        ("HubertModel", {"hidden_act": "snake"}, r"snake"),
        ("HubertModel", {"feat_extract_activation": "snake"}, r"snake"),
        ("HubertModel", {"num_attention_heads": 5}, r"hidden_size=24 is not a multiple of num_attention_heads=5"),
        ("HubertModel", {"num_attention_heads": 0}, r"hidden_size=24 is not a multiple of num_attention_heads=0"),
        ("HubertModel", {"conv_stride": [5, 2]}, r"is not a HuBERT configuration: .*conv_stride"),
        ("Wav2Vec2Model", {"rotary": True}, r"config\.json: rotary=True is not understood\. If it does not change the forward"),
        ("HubertModel", {"pruned_heads": {"0": [1]}}, r"pruned_heads=.* is not implemented"),
        ("HubertForCTC", {"pad_token_id": None}, r"needs vocab_size and, as its blank, a pad_token_id below it: 32, None"),
        ("HubertForCTC", {"pad_token_id": 32}, r"a pad_token_id below it: 32, 32"),
        ("Wav2Vec2ForCTC", {"ctc_loss_reduction": "none"}, r"ctc_loss_reduction='none' is not implemented; 'sum' and"),
        ("HubertForSequenceClassification", {"id2label": {"0": "a", "2": "b"}}, r"id2label has ids \[0, 2\]; they must"),
        ("HubertForSequenceClassification", {"id2label": {"0": "a"}}, r"names 1 classes, and classifier\.weight of .*\[5,"),
        ("HubertForCTC", {"quantization_config": {"bits": 8}}, r"quantization_config=.* is not understood: .*dequantize"),
        ("HubertForCTC", {"auto_map": {"AutoModel": "code.Model"}}, r"auto_map=.* is not understood"),
        ("HubertForCTC", {"architectures": "HubertForCTC"}, r"architectures is 'HubertForCTC'; it must be a list"),
        ("HubertForCTC", {"hidden_dropout": 2.0}, r"config\.json: dropout is 2\.0; it must be a number from 0 to 1"),
        ("HubertForSequenceClassification", {"classifier_proj_size": -1}, r"d_pooled is -1; it must be a positive whole"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_is_refused_by_name(
    hf_class: str, values: dict[str, Any], message: str, folder_of: FolderOf
) -> None:
    folder = folder_of(hf_class)
    edit_config(folder, **values)
    with pytest.raises(ConfigError, match=message):
        load(folder)


def test_two_classes_of_one_name(folder_of: FolderOf) -> None:
    folder = folder_of("HubertForSequenceClassification")
    edit_config(folder, id2label=dict(enumerate("abcba")))
    model = load(folder)
    head = model.heads["sequence_classification"]
    with pytest.raises(InputError, match=r"2 classes of the sequence_classification head are called 'b'; .* of one: 1, 3"):
        head.output_index("b", None)
    assert [head.output_index(target, None) for target in ("c", 1, 3)] == [2, 1, 3]
    best = model(snippets()[0], return_type="logits").argmax(-1)
    assert model(snippets()[0], return_type="predictions") == "abcba"[int(best)]


@pytest.mark.parametrize("change", [lambda model: model.to("meta"), lambda model: model.to(torch.float8_e5m2)])
def test_a_model_in_memory_whose_weights_cannot_be_read(change: Callable[[Any], Any]) -> None:
    with pytest.raises(WeightsError, match=r"HubertForCTC: .* (is on the meta device|cannot be computed .*Float8)"):
        load(change(tiny_hf("HubertForCTC")))


@pytest.mark.parametrize("hf_class", ["Wav2Vec2ForXVector", "Wav2Vec2ForAudioFrameClassification"])
def test_classes_that_are_not_supported(hf_class: str) -> None:
    hf_model = tiny_hf(hf_class, tdnn_dim=[6], tdnn_kernel=[3], tdnn_dilation=[1], xvector_output_dim=4)
    with pytest.raises(UnknownArchitectureError, match=rf"declares {hf_class}, which is not supported.*task='encoder'"):
        load(hf_model)
    model = load(hf_model, task="encoder")
    assert any(name.startswith("classifier") for name in model.load_report.left)
    assert torch.equal(model.blocks[2].attn.q.weight, hf_model.wav2vec2.encoder.layers[2].attention.q_proj.weight)


def test_a_model_of_the_other_kind_is_sent_to_the_other_class(saved: Saved, tmp_path: Path) -> None:
    audio_model, audio_folder = saved("Wav2Vec2ForCTC")
    text_model = save_tiny("BertModel", tmp_path)
    for source in ({"model_name": audio_folder}, {"hf_model": audio_model}):
        with pytest.raises(ConfigError, match=r"is a model that reads audio: use HookedAudioEncoder"):
            HookedEncoder.from_pretrained(**source, device="cpu")
    for source in (tmp_path, text_model):
        with pytest.raises(ConfigError, match=r"is a model that reads text: use HookedEncoder"):
            load(source)
    with pytest.raises(ConfigError, match=r"reads audio: use HookedAudioEncoder"):
        HookedEncoder(load(audio_folder).cfg.encoder)
    with pytest.raises(ConfigError, match=r"reads text: use HookedEncoder"):
        HookedAudioEncoder(HookedEncoder.from_pretrained(tmp_path, device="cpu").cfg.encoder)


CONV = "encoder__pos_conv_embed__conv__parametrizations__weight"


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"encoder__layers__1__attention__q_proj__weight": None}, r"lacks 1 tensors .*: hubert\.encoder\.layers\.1\.atten"),
        ({f"{CONV}__original0": None}, r"lacks 1 tensors .*: hubert\.encoder\.pos_conv_embed\.conv\.parametrizations"),
        ({"feature_extractor__conv_layers__0__layer_norm__bias": None}, r"lacks 1 tensors .*conv_layers\.0\.layer_norm\.bias"),
        (
            {f"{CONV}__original0": torch.ones(24, 6, 6), f"{CONV}__original1": torch.ones(1, 1, 6)},
            r"original0 has shape \[24, 6, 6\], the configuration calls for \[1, 1, 6\]",
        ),
        ({"feature_extractor__conv_layers__1__conv__weight": torch.ones(7, 9, 2)}, r"conv_layers\.1\.conv\.weight has shape"),
        ({"encoder__layers__3__layer_norm__weight": torch.ones(24)}, r"no part of the model takes: encoder\.layers\.3\.lay"),
        ({"feature_extractor__conv_layers__1__conv__bias": torch.ones(7)}, r"no part of the model takes: feature_extractor\.c"),
        ({"encoder__pos_conv_embed__batch_norm__weight": torch.ones(24)}, r"no part of the model takes: encoder\.pos_conv_e"),
        ({"masked_spec_embed": torch.ones(23)}, r"masked_spec_embed has shape \[23\], the configuration calls for \[24\]"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(edits: dict[str, torch.Tensor | None], message: str, folder_of: FolderOf) -> None:
    folder = folder_of("HubertModel")
    edit_tensors(folder, **edits)
    with pytest.raises(WeightsError, match=message):
        load(folder)


def test_half_a_head_that_nobody_asked_for_is_left_out(folder_of: FolderOf, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of("HubertModel")
    edit_tensors(folder, lm_head__weight=torch.ones(32, 24))
    assert not load(folder).heads
    assert "left out, as the ctc head is not whole: lm_head.weight" in caplog.text


def test_a_head_that_is_declared_and_not_there_is_named(folder_of: FolderOf) -> None:
    folder = folder_of("HubertModel")
    edit_config(folder, architectures=["HubertForCTC"])
    with pytest.raises(
        WeightsError, match=r"is a HubertForCTC, but the weights of its ctc head \(lm_head\.weight, .*\) are miss"
    ):
        load(folder)
    with pytest.raises(TaskError, match="no 'masked_lm' head: it has ctc; task='encoder'"):
        load(folder_of("Wav2Vec2ForCTC"), task="masked_lm")


def test_steps_of_training_are_named_by_revision(saved: Saved) -> None:
    for given in ({"checkpoint_index": 3}, {"checkpoint_value": 100}):
        with pytest.raises(ConfigError, match="have no meaning for encoders: name a training step by revision="):
            load(saved("HubertModel")[1], **given)
