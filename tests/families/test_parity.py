"""Every class of every text family against Hugging Face: logits, hidden states, attention, gradients, and back again."""

from inspect import signature
from typing import Any

import pytest
import torch
import transformers

from encoderlens import HookedEncoder
from encoderlens.families import REGISTRY
from tests.parity import assert_gradient_parity, assert_parity, gradients, gradients_under_hf_names
from tests.text_families import ENCODERS, hf_twin, new_text_model, text_batch
from tests.tiny import VARIANTS, tiny_batch, tiny_hf

TEXT = {model_type: family for model_type, family in REGISTRY.items() if family.modality == "text"}
CLASSES = [name for family in TEXT.values() for name in family.classes]
# Every class as it is; and what else its family can be asked for, with one head (BERT's, with all of them).
CASES = [(name, "plain") for name in CLASSES] + [
    (name, variant)
    for model_type, family in TEXT.items()
    for name, tasks in family.classes.items()
    if model_type == "bert" or tasks[:1] == ("masked_lm",)
    for variant in VARIANTS[model_type]
]


@pytest.fixture(params=CASES, ids=lambda param: f"{param[0]}, {param[1]}")
def twins(request: pytest.FixtureRequest) -> tuple[Any, HookedEncoder, dict[str, torch.Tensor]]:
    hf_class, variant = request.param
    model_type = getattr(transformers, hf_class).config_class.model_type
    hf_model = tiny_hf(hf_class, seed=len(variant), **({} if variant == "plain" else VARIANTS[model_type][variant]))
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    return hf_model, model, tiny_batch(n_types=model.cfg.n_token_types)


ALIKE = ("TokenClassification", "QuestionAnswering", "NextSentencePrediction")  # in other dtypes


def run_hf(hf_model: Any, batch: dict[str, torch.Tensor], **kwargs: Any) -> Any:
    types = {"token_type_ids": batch["types"]} if "token_type_ids" in signature(hf_model.forward).parameters else {}
    return hf_model(batch["tokens"], attention_mask=batch["mask"], **types, **kwargs)


def hf_logits(output: Any) -> torch.Tensor:
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], -1)
    if "prediction_logits" in output:
        return output.prediction_logits
    return output.logits


def test_forward(twins: Any) -> None:
    hf_model, model, batch = twins
    with torch.no_grad():
        theirs = run_hf(hf_model, batch, output_hidden_states=True, output_attentions=True)
        hidden, cache = model.run_with_cache(batch["tokens"], "hidden", batch["types"], batch["mask"])
        fused = model(batch["tokens"], "hidden", batch["types"], batch["mask"])
    mask = batch["mask"]
    assert_parity(hidden, theirs.hidden_states[-1], mask)
    assert_parity(fused, theirs.hidden_states[-1], mask)
    for layer in range(model.cfg.n_layers):
        assert_parity(cache["resid_pre", layer], theirs.hidden_states[layer], mask)
        ours = cache["pattern", layer].transpose(1, 2)
        assert_parity(ours, theirs.attentions[layer].transpose(1, 2), mask)
    if model.cfg.pooler is not None and "pooler_output" in theirs:
        assert_parity(model.pooler(fused), theirs.pooler_output)


def test_logits(twins: Any) -> None:
    hf_model, model, batch = twins
    if model.task is None:
        with pytest.raises(ValueError, match="needs a head"):
            model(batch["tokens"], "logits")
        return
    with torch.no_grad():
        theirs = hf_logits(run_hf(hf_model, batch))
        ours = model(batch["tokens"], "logits", batch["types"], batch["mask"])
        hooked, _ = model.run_with_cache(batch["tokens"], "logits", batch["types"], batch["mask"])
    mask = batch["mask"] if model.heads[model.task].per_position else None
    assert_parity(ours, theirs, mask)
    assert_parity(hooked, theirs, mask)


def labels_for(model: HookedEncoder, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Labels for our loss, and the arguments that give Hugging Face the same."""
    generator = torch.Generator().manual_seed(3)
    shape = batch["tokens"].shape
    if model.task == "question_answering":
        spans = torch.tensor([[1, 3], [0, 6], [2, 2]])
        return spans, {"start_positions": spans[:, 0], "end_positions": spans[:, 1]}
    if model.task in ("next_sentence", "sequence_classification"):
        labels = torch.randint(0, 2, shape[:1], generator=generator)
        return labels, {"labels": labels}
    if model.task == "replaced_token_detection":
        labels = torch.randint(0, 2, shape, generator=generator)
        return labels, {"labels": labels.float()}
    high = model.cfg.d_vocab if model.task == "masked_lm" else 3
    labels = torch.randint(0, high, shape, generator=generator).masked_fill(batch["mask"] == 0, -100)
    labels[0, ::2] = -100
    return labels, {"labels": labels}


def test_loss_and_gradients(twins: Any) -> None:
    hf_model, model, batch = twins
    if model.task is None:
        ours = model(batch["tokens"], "hidden", batch["types"], batch["mask"])[batch["mask"].bool()].square().mean()
        theirs = run_hf(hf_model, batch).last_hidden_state[batch["mask"].bool()].square().mean()
    else:
        labels, hf_labels = labels_for(model, batch)
        ours = model(batch["tokens"], "loss", batch["types"], batch["mask"], labels=labels)
        output = run_hf(hf_model, batch, **hf_labels)
        theirs = output.loss
        if theirs is None:  # classes for pre-training have a loss only for both heads at once
            theirs = torch.nn.functional.cross_entropy(output.prediction_logits.flatten(0, 1), labels.flatten())
    assert_parity(ours, theirs)
    ours.backward()
    theirs.backward()
    assert_gradient_parity(gradients_under_hf_names(model, hf_model), gradients(hf_model))


@pytest.mark.parametrize("hf_class", ENCODERS.values())
def test_vectors_in_place_of_word_embeddings(hf_class: str) -> None:
    hf_model = tiny_hf(hf_class, seed=4)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    batch = tiny_batch(n_types=model.cfg.n_token_types)
    width = model.embed.embed.W_E.shape[1]
    vectors = torch.randn(3, 11, width, generator=torch.Generator().manual_seed(5)).requires_grad_()
    named = {"inputs_embeds": vectors, "attention_mask": batch["mask"]}
    if "token_type_ids" in signature(hf_model.forward).parameters:
        named["token_type_ids"] = batch["types"]
    theirs = hf_logits(hf_model(**named))
    ours, cache = model.run_with_cache(**named, names_filter="embed.hook_embed")
    assert_parity(ours, theirs, batch["mask"])
    assert_parity(model(**named), theirs, batch["mask"])
    assert torch.equal(cache["embed"], vectors)
    real = batch["mask"].bool()
    (our_gradient,) = torch.autograd.grad(ours[real].square().mean(), vectors)
    (their_gradient,) = torch.autograd.grad(theirs[real].square().mean(), vectors)
    assert_parity(our_gradient, their_gradient, batch["mask"])


# Every family, and what the padding token means to some: untied tables, other tokens, positions that are counted without it.
PADDED = [(name, "plain") for name in ENCODERS.values()] + [
    ("BertForPreTraining", "untied, silu, one head"),
    ("RobertaForMaskedLM", "another padding token, two token types"),
    ("EsmForMaskedLM", "absolute"),
    ("EsmForMaskedLM", "absolute, a norm in front, another padding token"),
    ("EsmForMaskedLM", "untied, no token dropout, no mask token"),
]


@pytest.mark.parametrize(("hf_class", "variant"), PADDED, ids=lambda value: value)
def test_the_padding_token_is_trained_as_in_hugging_face(hf_class: str, variant: str) -> None:
    """By an unembedding that shares its row, and never by the embeddings, of words or of positions."""
    hf_model, model = hf_twin(hf_class, variant), new_text_model(hf_class, variant)
    batch, pad = text_batch(model), hf_model.get_input_embeddings().padding_idx
    batch["tokens"] = batch["tokens"].masked_fill(batch["mask"] == 0, pad)
    batch["tokens"][0, 5] = pad  # one that the mask calls real
    labels = torch.randint(0, model.cfg.d_vocab, batch["tokens"].shape, generator=torch.Generator().manual_seed(4))
    model(batch["tokens"], "loss", batch["types"], batch["mask"], labels=labels).backward()
    loss = torch.nn.functional.cross_entropy(hf_logits(run_hf(hf_model, batch)).flatten(0, 1), labels.flatten())
    names, parameters = zip(*hf_model.named_parameters(), strict=True)
    theirs = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    assert_gradient_parity(gradients_under_hf_names(model, hf_model), dict(zip(names, theirs, strict=True)))
    assert bool(model.embed.embed.weight.grad[pad].any()) == model.cfg.tie_word_embeddings


@pytest.mark.parametrize("hf_class", CLASSES)
def test_to_hf_is_bit_exact(hf_class: str) -> None:
    hf_model = tiny_hf(hf_class, seed=5)
    back = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu").to_hf()
    assert type(back) is type(hf_model)
    ours, theirs = back.state_dict(), hf_model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ignored = {"_attn_implementation_internal", "architectures", "dtype", "transformers_version"}
    config, expected = back.config.to_dict(), hf_model.config.to_dict()
    assert {k: v for k, v in config.items() if k not in ignored} == {k: v for k, v in expected.items() if k not in ignored}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("hf_class", [name for name in CLASSES if not name.endswith(ALIKE)])
def test_other_dtypes_run_end_to_end(hf_class: str, dtype: torch.dtype) -> None:
    hf_model = tiny_hf(hf_class, seed=5)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu", dtype=dtype)
    batch = tiny_batch(n_types=model.cfg.n_token_types)
    reference = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    returns = "logits" if model.task else "hidden"
    arguments = (batch["tokens"], returns, batch["types"], batch["mask"])
    plain, (hooked, cache) = model(*arguments), model.run_with_cache(*arguments)
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-5}[dtype]
    mask = batch["mask"] if returns == "hidden" or model.heads[model.task].per_position else None
    assert plain.dtype == hooked.dtype == dtype
    assert_parity(plain.float(), reference(*arguments).float(), mask, tolerance)
    assert_parity(hooked.float(), plain.float(), mask, tolerance)
    assert all(value.isfinite().all() for name, value in cache.items() if not name.endswith("attn_scores"))


def test_no_class_belongs_to_two_families() -> None:
    classes = [name for family in REGISTRY.values() for name in family.classes]
    assert len(classes) == len(set(classes))
