"""Sentence encoders, against sentence-transformers on the folders that it saves."""

import copy
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from encoderlens import HookedEncoder
from encoderlens.components.heads.sentence_embedding import POOLING_MODES, SentenceNormalize
from encoderlens.config import SentenceEmbeddingPart, SentencePoolingPart
from encoderlens.errors import (
    CheckpointNotFoundError,
    ConfigError,
    HookUnreachableError,
    InputError,
    TaskError,
    TokenizerMissingError,
    WeightsError,
)
from encoderlens.sequence import Sequence
from tests.checkpoints import assert_same_tensors, edit_config, edit_tensors
from tests.parity import assert_changed, assert_close, assert_parity
from tests.sentences import LONG, TEXTS, edit_json, edit_modules, encoded, load, save_encoder, save_transformer
from tests.tiny import tiny_batch, tiny_hf

TOLERANCES = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.06}


@pytest.fixture(scope="module")
def modules() -> Any:
    """The modules of sentence-transformers."""
    from sentence_transformers.sentence_transformer import modules

    return modules


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a tiny transformer, for each side on which its tokenizer pads."""
    folders = {side: tmp_path_factory.mktemp(side) for side in ("right", "left")}
    for side, folder in folders.items():
        save_transformer(folder, padding_side=side)
    return folders


@pytest.fixture(scope="module")
def transformer(transformers: dict[str, Path]) -> Path:
    return transformers["right"]


@pytest.fixture(scope="module")
def usual(modules: Any, transformer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A reference with a mean, a dense layer and a norm, and prompts; and its folder, which no test may change."""
    folder = tmp_path_factory.mktemp("usual")
    layers = (modules.Pooling(40), modules.Dense(40, 30), modules.LayerNorm(30), modules.Normalize())
    return save_encoder(transformer, folder, *layers), folder


@pytest.fixture
def folder(usual: tuple[Any, Path], tmp_path: Path) -> Path:
    """The same folder, of one's own."""
    return shutil.copytree(usual[1], tmp_path / "encoder")


def both(model: HookedEncoder, texts: list[str] = TEXTS) -> tuple[Tensor, Any]:
    """The embeddings, which are the same with and without hooks, and the cache of a run with all of these."""
    with torch.no_grad():
        fused = model(texts, "embedding")
        hooked, cache = model.run_with_cache(texts, "embedding", names_filter=lambda name: True)
    last = list(model.sentence)[-1]
    assert torch.equal(hooked, cache[f"sentence.{last}.hook_out"])
    assert_parity(hooked, fused, tolerance=TOLERANCES[model.cfg.dtype])
    return fused, cache


# Equal to the reference


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "modes", [*POOLING_MODES, ("mean", "max", "cls"), ("lasttoken", "weightedmean", "mean_sqrt_len_tokens"), POOLING_MODES]
)
def test_pooling(modes: Any, side: str, modules: Any, transformers: dict[str, Path], tmp_path: Path) -> None:
    reference = save_encoder(transformers[side], tmp_path, modules.Pooling(40, modes))
    model = load(tmp_path)
    assert model.tokenizer.padding_side == side
    assert_parity(both(model)[0], encoded(reference))
    assert_parity(model(TEXTS[0]).detach(), encoded(reference, TEXTS[:1]))


LAYERS: dict[str, Callable[[Any], list[Any]]] = {
    "dense": lambda m: [m.Dense(40, 30)],
    "dense without a bias": lambda m: [m.Dense(40, 30, bias=False, activation_function=torch.nn.Identity())],
    "dense and normalize": lambda m: [m.Dense(40, 30, activation_function=torch.nn.GELU()), m.Normalize()],
    "residual of equal widths": lambda m: [m.Dense(40, 40, use_residual=True, activation_function=torch.nn.ReLU())],
    "residual of different widths": lambda m: [m.Dense(40, 17, use_residual=True, activation_function=torch.nn.SiLU())],
    "sigmoid": lambda m: [m.Dense(40, 8, activation_function=torch.nn.Sigmoid())],
    "norm": lambda m: [m.LayerNorm(40)],
    "dropout": lambda m: [m.Dropout(0.5), m.Normalize()],
    "many": lambda m: [m.Dense(40, 30), m.Normalize(), m.Dense(30, 20), m.LayerNorm(20), m.Normalize()],
}


@pytest.mark.parametrize("layers", LAYERS)
def test_layers_behind_the_pooling(layers: str, modules: Any, transformer: Path, tmp_path: Path) -> None:
    reference = save_encoder(transformer, tmp_path, modules.Pooling(40), *LAYERS[layers](modules))
    assert_parity(both(load(tmp_path))[0], encoded(reference))


def test_layers_of_one_kind_are_numbered(modules: Any, transformer: Path, tmp_path: Path) -> None:
    save_encoder(transformer, tmp_path, modules.Pooling(40), *LAYERS["many"](modules))
    assert list(load(tmp_path).sentence) == ["pooling", "dense", "normalize", "dense_2", "layer_norm", "normalize_2"]


def test_a_layer_that_is_replaced_is_the_one_that_runs(usual: tuple[Any, Path]) -> None:
    model, reference = load(usual[1]), usual[0]
    embedding = encoded(reference)
    opposite = copy.deepcopy(model.sentence["dense"])
    with torch.no_grad():
        opposite.W = -opposite.W
        opposite.b = -opposite.b
    model.sentence["dense"] = opposite
    assert_changed(model(TEXTS).detach(), embedding)
    with pytest.raises(WeightsError, match=r"model\.sentence cannot be replaced: the sentence_embedding head runs"):
        model.sentence = copy.deepcopy(model.sentence)


@pytest.mark.parametrize("hf_class", ["RobertaModel", "MPNetModel", "DistilBertModel", "RobertaPreLayerNormModel"])
def test_families(hf_class: str, modules: Any, tmp_path: Path) -> None:
    save_transformer(tmp_path / "transformer", hf_class)
    reference = save_encoder(tmp_path / "transformer", tmp_path / "encoder", modules.Pooling(40), modules.Normalize())
    vectors, _ = both(load(tmp_path / "encoder"))
    assert_parity(vectors, encoded(reference))
    assert_parity(vectors.norm(dim=-1), torch.ones(len(TEXTS)))


def test_half_precision(modules: Any, transformer: Path, tmp_path: Path) -> None:
    layers = (modules.Dense(40 * len(POOLING_MODES), 30, use_residual=True), modules.LayerNorm(30), modules.Normalize())
    reference = save_encoder(transformer, tmp_path, modules.Pooling(40, POOLING_MODES), *layers)
    for dtype in (torch.float16, torch.bfloat16):
        vectors, cache = both(load(tmp_path, dtype=dtype))
        assert all(tensor.dtype == dtype for name, tensor in cache.items() if name.endswith("hook_out"))
        assert_parity(vectors.float(), encoded(reference), tolerance=TOLERANCES[dtype])


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_pooling_of_long_texts_in_half_precision(mode: str) -> None:
    """Where the sum of the weights 1, 2, 3, … leaves the range of float16."""
    part = SentenceEmbeddingPart(SentencePoolingPart((mode,)))
    source = HookedEncoder.from_pretrained(hf_model=tiny_hf("BertModel", max_position_embeddings=512), device="cpu")
    cfg = replace(source.cfg.encoder, sentence=part)
    models = [HookedEncoder(cfg, device="cpu", dtype=dtype) for dtype in (torch.float16, torch.float64)]
    stream = torch.randn(2, 512, 40, generator=torch.Generator().manual_seed(0))
    half, double = (model(stream, "embedding", start_at_layer=3) for model in models)
    assert half.dtype == torch.float16
    assert_parity(half.double(), double, tolerance=2e-3)


def test_the_mean_of_a_padded_text_in_half_precision() -> None:
    """Where the sum over positions leaves the range of float16."""
    sequence = Sequence(1, 8, torch.arange(8).expand(1, 8) < 7)
    stream = torch.full((1, 8, 3), 20_000.0, dtype=torch.float16)
    assert torch.equal(sequence.mean(stream), stream[:, 0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_vectors_of_any_length_are_normalised(dtype: torch.dtype) -> None:
    """One of zeros stays so; the length of a long one may be no number of its dtype."""
    vectors = torch.tensor([[0.0, 0, 0, 0], [3, 0, -4, 0], [50_000, 50_000, 50_000, 50_000], [1e-4, 0, 0, 0]], dtype=dtype)
    expected = torch.tensor([[0.0, 0, 0, 0], [0.6, 0, -0.8, 0], [0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0]], dtype=dtype)
    assert_close(SentenceNormalize()(vectors), expected)


def test_weights_may_be_bin_files(usual: tuple[Any, Path], folder: Path) -> None:
    dense = folder / "2_Dense"
    torch.save(load_file(dense / "model.safetensors"), dense / "pytorch_model.bin")
    (dense / "model.safetensors").unlink()
    assert_same_tensors(load(folder).state_dict(), load(usual[1]).state_dict())


def test_folders_of_earlier_versions(modules: Any, tmp_path: Path) -> None:
    """The transformer in a folder of its own, flags for pooling modes, a pickled dense layer, and no file for Normalize."""
    from sentence_transformers import SentenceTransformer

    save_transformer(tmp_path / "0_Transformer")
    (tmp_path / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": false}')
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    entries = [
        {"idx": index, "name": str(index), "path": f"{index}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    (tmp_path / "config.json").write_text('{"__version__": "0.2.5"}')
    for kind in ("1_Pooling", "2_Dense"):
        (tmp_path / kind).mkdir()
    flags = {"word_embedding_dimension": 40, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(flags | {"pooling_mode_max_tokens": True}))
    options = {"in_features": 80, "out_features": 9, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps(options))
    torch.save(modules.Dense(80, 9).state_dict(), tmp_path / "2_Dense" / "pytorch_model.bin")
    model = load(tmp_path)
    assert model.cfg.sentence is not None
    assert model.cfg.sentence.pooling.modes == ("max", "mean")
    assert model.max_tokens == 12
    assert_parity(both(model, [*TEXTS, LONG])[0], encoded(SentenceTransformer(str(tmp_path), device="cpu"), [*TEXTS, LONG]))


def test_without_a_flag_the_pooling_is_a_mean(usual: tuple[Any, Path], folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 40}')
    assert_parity(load(folder)(TEXTS).detach(), load(usual[1])(TEXTS).detach())


# Prompts, lower case, long texts


def test_prompts(modules: Any, transformer: Path, tmp_path: Path) -> None:
    prompts = {"query": "what is: ", "passage": "passage: ", "document": ""}
    reference = save_encoder(transformer, tmp_path, modules.Pooling(40), prompts=prompts, default_prompt_name="query")
    model = load(tmp_path)
    assert model.cfg.sentence is not None
    assert dict(model.cfg.sentence.prompts) == {"query": "what is: ", "passage": "passage: "}
    assert model.prompt == "what is: "
    assert_parity(model(TEXTS).detach(), encoded(reference))
    tokens = model.to_str_tokens("the doctor")
    assert tokens[1:3] == ["what", "is"]
    assert list(model.align("the doctor").tokens) == tokens
    assert model.prepare("the doctor").labels == ("what is: the doctor",)
    assert model.to_tokens("the doctor")[0].shape[1] == len(tokens)
    model.prompt = dict(model.cfg.sentence.prompts)["passage"]
    assert_parity(model(TEXTS).detach(), encoded(reference, prompt_name="passage"))
    for nothing in ("", None):
        model.prompt = nothing
        assert model.prompt == ""
        assert_parity(model(TEXTS).detach(), encoded(reference, prompt=""))
    assert_changed(model(TEXTS), encoded(reference))  # the prompt makes a difference


def test_a_model_without_a_prompt(usual: tuple[Any, Path], bert: HookedEncoder) -> None:
    assert load(usual[1]).prompt == bert.prompt == ""


@pytest.mark.parametrize("prompt", [5, ["query: "], b"query: ", torch.zeros(1)])
def test_a_prompt_that_is_no_text_is_refused(prompt: Any, bert: HookedEncoder, unchecked: None) -> None:
    with pytest.raises(InputError, match=r"prompt is an? .*; it is text to stand in front of every text, or None"):
        bert.prompt = prompt
    assert bert.prompt == ""
    part = SentenceEmbeddingPart(SentencePoolingPart(), prompt=prompt)
    with pytest.raises(ConfigError, match=r"prompt is .*; it must be a text"):
        part.check()


def make_cased(folder: Path) -> None:
    """Have the tokenizer of a folder leave capitals as they are, which are no tokens."""
    words = json.loads((folder / "tokenizer.json").read_text()) | {"normalizer": None}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


@pytest.mark.parametrize("lowers", [True, False])
def test_lower_case(lowers: bool, folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    make_cased(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, "do_lower_case": lowers}))
    texts = ["The Doctor WALKED", "the doctor walked"]
    model = load(folder)
    vectors = model(texts).detach()
    assert_parity(vectors, encoded(SentenceTransformer(str(folder), device="cpu"), texts))
    assert ("[UNK]" in model.to_str_tokens(texts[0])) != lowers
    assert torch.equal(vectors[0], vectors[1]) == lowers


def test_a_tokenizer_that_is_given_is_not_changed(folder: Path) -> None:
    make_cased(folder)
    tokenizer = load(folder).tokenizer
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    model = load(folder, tokenizer=tokenizer)
    assert model.to_str_tokens("The")[1] == "the"
    assert tokenizer.tokenize("The") == ["[UNK]"]


def test_without_a_tokenizer_tokens_still_go_in(folder: Path) -> None:
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    for path in folder.glob("tokenizer*"):
        path.unlink()
    model = load(folder)
    assert model(tiny_batch()["tokens"]).shape == (3, 30)
    with pytest.raises(TokenizerMissingError, match="text input needs a tokenizer"):
        model("the doctor")


LIMITS = {
    "the folder's": (lambda folder: edit_json(folder / "sentence_bert_config.json", max_seq_length=9), 9),
    "the tokenizer's": (lambda folder: edit_json(folder / "tokenizer_config.json", model_max_length=13), 13),
    "the positions'": (lambda folder: None, 37),
}


@pytest.mark.parametrize("whose", LIMITS)
def test_long_texts_are_cut(whose: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    from sentence_transformers import SentenceTransformer

    change, limit = LIMITS[whose]
    change(folder)
    model = load(folder)
    texts = ["no", LONG, "the doctor", LONG + LONG]
    with caplog.at_level(logging.WARNING, "encoderlens"):
        vectors = model(texts).detach()
    assert model.max_tokens == limit
    assert f"cut to the {limit} tokens that the sentence encoder takes: text 1, 3" in caplog.text
    assert_parity(vectors, encoded(SentenceTransformer(str(folder), device="cpu"), texts))
    assert model.to_tokens(LONG)[0].shape == (1, limit)


def test_a_text_that_just_fits_is_not_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(folder / "sentence_bert_config.json", max_seq_length=len(load(folder).to_str_tokens(TEXTS[0])))
    model = load(folder)
    model([TEXTS[0], "no"])
    assert caplog.text == ""
    model([LONG] * 7)
    assert "text 0, 1, 2, 3, 4 and 2 more" in caplog.text


def test_a_shorter_context(usual: tuple[Any, Path]) -> None:
    model = load(usual[1], n_ctx=11)
    assert model.max_tokens == 11
    tokens, _, _ = load(usual[1]).to_tokens(LONG)
    cut = torch.cat([tokens[:, :10], tokens[:, -1:]], 1)
    assert_parity(model(LONG).detach(), load(usual[1])(cut).detach())


def test_tokens_go_in_as_they_are(usual: tuple[Any, Path]) -> None:
    model = load(usual[1])
    tokens, types, mask = model.to_tokens(TEXTS)
    assert_parity(model(tokens, "embedding", types, mask).detach(), encoded(usual[0]))
    with pytest.raises(InputError, match="input has 38 positions, the model takes 37"):
        model(torch.ones(1, 38, dtype=torch.long))


# Heads, and what goes without them


def test_a_declared_head_whose_weights_are_not_there(modules: Any, transformer: Path, tmp_path: Path) -> None:
    reference = save_encoder(transformer, tmp_path, modules.Pooling(40))
    edit_config(tmp_path, architectures=["BertForMaskedLM"])
    model = load(tmp_path)
    assert model.heads == {}
    assert model.task is None
    assert model.cfg.original_architecture == "BertModel"
    assert_parity(model(TEXTS).detach(), encoded(reference))
    with pytest.raises(TaskError, match="return_type='logits' needs a head, and this model has none"):
        model(TEXTS, "logits")


def test_a_head_that_is_there_is_kept(modules: Any, transformer: Path, tmp_path: Path) -> None:
    reference = save_encoder(transformer, tmp_path, modules.Pooling(40), modules.Normalize())
    hf_model = tiny_hf("BertForMaskedLM")
    hf_model.bert.load_state_dict(tiny_hf("BertModel").state_dict(), strict=False)
    hf_model.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert list(model.heads) == ["masked_lm"]
    tokens, types, mask = model.to_tokens(TEXTS)
    with torch.no_grad():
        theirs = hf_model(tokens, token_type_ids=types, attention_mask=mask).logits
        assert_parity(model(TEXTS), theirs, mask)  # logits are the default where there is a head
        assert_parity(model(TEXTS, "embedding"), encoded(reference))
    assert_same_tensors(model.to_hf().state_dict(), hf_model.state_dict())


def test_the_encoder_alone(usual: tuple[Any, Path]) -> None:
    model = load(usual[1], task="encoder")
    assert model.sentence_embedding is None
    assert model.cfg.sentence is None
    assert not any(name.startswith("sentence") for name in model.hook_dict)
    assert model.load_report.left == ()
    assert model("no").shape == (1, 3, 40)
    with pytest.raises(InputError, match="the model takes 37"):
        model(LONG)  # what a sentence encoder cuts


def test_to_hf_gives_the_transformer(usual: tuple[Any, Path]) -> None:
    reference, folder = usual
    hf_model = load(folder).to_hf()
    assert type(hf_model).__name__ == "BertModel"
    assert_same_tensors(hf_model.state_dict(), reference[0].model.state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_give_the_same_embeddings(duplicate: Any, usual: tuple[Any, Path]) -> None:
    model = load(usual[1])
    twin = duplicate(model)
    assert torch.equal(twin(TEXTS), model(TEXTS))
    with torch.no_grad():
        twin.sentence["dense"].b.zero_()
    assert not torch.equal(twin(TEXTS), model(TEXTS))


# Running


def test_an_embedding_of_a_given_stream(usual: tuple[Any, Path]) -> None:
    model = load(usual[1])
    tokens, types, mask = model.to_tokens(TEXTS)
    stream = model.run_with_cache(tokens, "hidden", types, mask)[1]["resid_pre", 1]
    ours = model(stream, one_zero_attention_mask=mask, start_at_layer=1)
    assert_parity(ours.detach(), encoded(usual[0]))


def test_what_does_not_go_with_an_embedding_is_refused(usual: tuple[Any, Path], bert: HookedEncoder) -> None:
    model = load(usual[1])
    with pytest.raises(InputError, match="return_type='embedding' needs the last layer; with stop_at_layer take 'hidden'"):
        model(TEXTS, "embedding", stop_at_layer=2)
    assert model(TEXTS, stop_at_layer=2).shape[-1] == 40, "the stream is what such a run gives by default"
    with pytest.raises(InputError, match="logits_at chooses positions of return_type='logits'"):
        model(TEXTS, "embedding", logits_at=0)
    with pytest.raises(InputError, match="labels and return_type='loss' go together"):
        model(TEXTS, "embedding", labels=torch.zeros(4))
    with pytest.raises(HookUnreachableError, match=r"sentence\.dense\.hook_out"):
        model.run_with_cache(TEXTS, "hidden", names_filter="sentence.dense.hook_out")
    for returns in ("logits", "predictions", "loss"):
        with pytest.raises(TaskError, match=f"return_type='{returns}' needs a head"):
            model(TEXTS, returns)
    with pytest.raises(TaskError, match=r"needs a sentence encoder, and this is none: its folder has no modules\.json"):
        bert("no", "embedding")


def test_a_hook_changes_the_embedding(usual: tuple[Any, Path]) -> None:
    model = load(usual[1])
    _, cache = model.run_with_cache(TEXTS)
    dense, ln = model.sentence["dense"], model.sentence["layer_norm"].ln

    def double(pooled: Tensor, hook: Any) -> Tensor:
        return 2 * pooled

    changed = model.run_with_hooks(TEXTS, fwd_hooks=[("sentence.pooling.hook_out", double)])
    by_hand = torch.tanh(2 * cache["sentence.pooling.hook_out"] @ dense.W + dense.b)
    by_hand = torch.nn.functional.normalize(torch.nn.functional.layer_norm(by_hand, (30,), ln.w, ln.b), dim=-1)
    assert_parity(changed.detach(), by_hand.detach())


def test_positions_do_not_slice_what_has_none(usual: tuple[Any, Path]) -> None:
    model = load(usual[1])
    _, cache = model.run_with_cache(TEXTS, pos_slice=(0, 2))
    assert cache["sentence.pooling.hook_out"].shape == (4, 40)
    assert cache["resid_post", -1].shape == (4, 2, 40)


def test_gradients_flow_to_the_embeddings(usual: tuple[Any, Path]) -> None:
    reference, folder = usual
    model = load(folder)
    model(TEXTS).sum().backward()
    features = {name: value for name, value in reference.preprocess(TEXTS).items() if isinstance(value, Tensor)}
    with torch.enable_grad():
        reference(features)["sentence_embedding"].sum().backward()
    theirs = reference[0].model.get_input_embeddings().weight.grad
    assert_parity(model.embed.embed.weight.grad, theirs, tolerance=1e-4)
    reference.zero_grad()


# What is refused


def without(path: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return remove


def with_text(path: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / path).write_text(text)


def with_values(path: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / path, **values)


def with_type(index: int, kind: str, package: str = "sentence_transformers.models") -> Callable[[Path], None]:
    def change(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [entry | ({"type": f"{package}.{kind}"} if entry["idx"] == index else {}) for entry in entries]

    return lambda folder: edit_modules(folder, change)


POOLING, DENSE, NORM = "1_Pooling/config.json", "2_Dense/config.json", "3_LayerNorm/config.json"
SETTINGS = "config_sentence_transformers.json"
REFUSED: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "unknown module": (with_type(2, "LSTM"), ConfigError, r"modules\.json: the module LSTM is not implemented; .* Dense, "),
    "unknown first module": (with_type(0, "WordEmbeddings"), ConfigError, r"modules\.json: the first module is WordEmbeddings"),
    "no pooling": (with_type(1, "CNN"), ConfigError, r"modules\.json: Transformer is followed by CNN; only Pooling"),
    "code of its own": (with_type(0, "Transformer", "own"), ConfigError, r"the first module is own\.Transformer; only Trans"),
    "pooling of its own": (
        with_type(1, "Pooling", "own"),
        ConfigError,
        r"Transformer is followed by own\.Pooling; only Pooling",
    ),
    "a layer of its own": (with_type(2, "Dense", "own"), ConfigError, r"the module own\.Dense is not implemented"),
    "no list of modules": (with_text("modules.json", "{}"), ConfigError, r"modules\.json is no list of modules"),
    "an empty list": (with_text("modules.json", "[]"), ConfigError, r"modules\.json is no list of modules"),
    "a module without a path": (
        lambda folder: edit_modules(folder, lambda entries: [entries[0], {"type": "a.Pooling"}]),
        ConfigError,
        r"modules\.json is no list of modules, each with a type and a path",
    ),
    "broken modules": (with_text("modules.json", "["), ConfigError, r"modules\.json is not valid JSON"),
    "broken pooling": (with_text(POOLING, "{"), ConfigError, r"1_Pooling/config\.json is not valid JSON"),
    "broken settings": (with_text(SETTINGS, "1"), ConfigError, rf"{SETTINGS} is not a JSON object"),
    "pooling that is a list": (with_text(POOLING, "[]"), ConfigError, r"1_Pooling/config\.json is not a JSON object"),
    "unknown pooling mode": (
        with_values(POOLING, pooling_mode="median"),
        ConfigError,
        r"1_Pooling/config\.json: pooling mode 'median' is not implemented; cls, max, mean, .* are; did you mean 'mean'",
    ),
    "pooling without the prompt": (
        lambda folder: [edit_json(folder / POOLING, include_prompt=False), edit_json(folder / SETTINGS, prompts={"q": "q: "})],
        ConfigError,
        r"1_Pooling/config\.json: include_prompt=False is not implemented",
    ),
    "unknown default prompt": (
        with_values(SETTINGS, default_prompt_name="answer"),
        ConfigError,
        rf"{SETTINGS}: default_prompt_name='answer' is none of its prompts: ",
    ),
    "prompts without names": (
        with_values(SETTINGS, prompts=["query: "]),
        ConfigError,
        r"prompts=.* is no object of texts",
    ),
    "a prompt that is no text": (
        with_values(SETTINGS, prompts={"q": 5}),
        ConfigError,
        rf"{SETTINGS}: prompts=.* is no object",
    ),
    "half a character": (with_values(SETTINGS, prompts={"q": "\ud800"}), ConfigError, rf"{SETTINGS}: the prompt 'q' has half"),
    "a default that is no name": (
        with_values(SETTINGS, default_prompt_name=3),
        ConfigError,
        "default_prompt_name=3; it is",
    ),
    "cut embeddings": (with_values(SETTINGS, truncate_dim=8), ConfigError, rf"{SETTINGS}: truncate_dim=8 is not implemented"),
    "other ways of calling the tokenizer": (
        with_values("sentence_bert_config.json", processing_kwargs={"text": {"max_length": 5}}),
        ConfigError,
        r"sentence_bert_config\.json: processing_kwargs=.* is not implemented",
    ),
    "a limit that is none": (
        with_values("sentence_bert_config.json", max_seq_length=-1),
        ConfigError,
        "max_tokens is -1; it must be a positive whole number",
    ),
    "unknown activation": (
        with_values(DENSE, activation_function="torch.nn.modules.activation.Softmax"),
        ConfigError,
        r"2_Dense/config\.json: the activation function .*Softmax is not implemented; Tanh",
    ),
    "dense over tokens": (
        with_values(DENSE, module_input_name="token_embeddings"),
        ConfigError,
        r"2_Dense/config\.json: module_input_name='token_embeddings' is not implemented; only 'sentence_embedding' is",
    ),
    "scores": (
        with_values(DENSE, module_output_name="scores"),
        ConfigError,
        r"2_Dense/config\.json: module_output_name='scores' is not implemented",
    ),
    "normalized tokens": (
        with_values("4_Normalize/config.json", module_input_name="token_embeddings"),
        ConfigError,
        r"4_Normalize/config\.json: module_input_name='token_embeddings' is not implemented",
    ),
    "no width": (with_values(DENSE, in_features=None), ConfigError, r"2_Dense/config\.json: in_features is None; it must be"),
    "no dimension": (with_text(NORM, "{}"), ConfigError, r"3_LayerNorm/config\.json: dimension is None; it must be"),
    "widths that do not fit": (
        with_values(DENSE, in_features=41),
        ConfigError,
        "2_Dense reads a vector of 41 numbers, and gets one of 40",
    ),
    "widths that do not fit behind it": (
        with_values(NORM, dimension=31),
        ConfigError,
        "3_LayerNorm reads a vector of 31 numbers, and gets one of 30",
    ),
    "missing pooling": (
        without("1_Pooling"),
        CheckpointNotFoundError,
        r"1_Pooling/config\.json is missing: modules\.json names",
    ),
    "missing dense": (without("2_Dense"), CheckpointNotFoundError, r"2_Dense/config\.json is missing"),
    "missing weights": (without("2_Dense/model.safetensors"), CheckpointNotFoundError, "2_Dense holds no weights"),
    "missing configuration": (
        without("config.json"),
        CheckpointNotFoundError,
        r"encoder/config\.json is missing: modules\.json",
    ),
    "missing transformer": (
        lambda folder: edit_modules(folder, lambda entries: [entries[0] | {"path": "0_Transformer"}, *entries[1:]]),
        CheckpointNotFoundError,
        r"0_Transformer/config\.json is missing: modules\.json says that the transformer is there; download it",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, folder: Path) -> None:
    change, error, message = REFUSED[what]
    change(folder)
    with pytest.raises(error, match=message):
        load(folder)


def test_excluding_the_prompt_does_no_harm_without_prompts(usual: tuple[Any, Path], folder: Path) -> None:
    edit_json(folder / POOLING, include_prompt=False)
    assert torch.equal(load(folder)(TEXTS), load(usual[1])(TEXTS))


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"linear__bias": None}, r"lacks 1 tensors that its configuration calls for: 2_Dense/linear\.bias"),
        (
            {"linear__weight": torch.ones(30, 41)},
            r"2_Dense/model\.safetensors: 2_Dense/linear\.weight has shape \[30, 41\], .*40",
        ),
        (
            {"extra": torch.ones(2)},
            r"2_Dense/model\.safetensors holds 1 tensors that no part of the model takes: 2_Dense/extra",
        ),
        ({"residual__weight": torch.ones(30, 40)}, r"no part of the model takes: 2_Dense/residual\.weight"),
        ({"linear__bias": torch.ones(30, dtype=torch.long)}, r"2_Dense/linear\.bias has dtype torch\.int64"),
    ],
)
def test_tensors_that_do_not_fit(edits: dict[str, Any], message: str, folder: Path) -> None:
    edit_tensors(folder / "2_Dense", **edits)
    with pytest.raises(WeightsError, match=message):
        load(folder)


def test_a_tensor_of_the_transformer_is_not_taken_for_one_of_a_module(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"linear.weight": torch.ones(2, 2)}, folder / "model.safetensors")
    with pytest.raises(
        WeightsError, match=r"model\.safetensors holds 1 tensors that no part of the model takes: linear\.weight"
    ):
        load(folder)
