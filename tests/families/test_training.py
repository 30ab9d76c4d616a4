"""Training mode of every text family: what is dropped, and where, as in Hugging Face."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from encoderlens import HookedEncoder
from tests.families.test_parity import hf_logits, run_hf
from tests.parity import assert_changed, assert_parity
from tests.text_families import ENCODERS, HEADS, text_batch
from tests.tiny import TINY, tiny_hf

OF_PAIRS = {"next_sentence": "seq_relationship_logits", "sentence_order": "sop_logits"}  # beside those of a masked-LM head
every_head = pytest.mark.parametrize(("hf_class", "task"), HEADS, ids=lambda value: value)


def dropouts(hf_class: str) -> list[str]:
    """The keys of a configuration that say how much is dropped; None there stands for that of another key."""
    config_class = getattr(transformers, hf_class).config_class
    values = config_class(**TINY[config_class.model_type]).to_dict()
    return [key for key, value in values.items() if "dropout" in key and isinstance(value, float | None)]


def twins(hf_class: str, task: str | None, **options: float) -> tuple[Any, HookedEncoder]:
    hf_model = tiny_hf(hf_class, seed=1, **options)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    model.task = task or model.task
    return hf_model.train(), model.train()


def trained(model: HookedEncoder, batch: dict[str, Tensor], seed: int) -> Tensor:
    """Logits of a run in training mode, with patterns computed as Hugging Face's eager attention does."""
    hooks = [(lambda name: name.endswith("hook_pattern"), lambda tensor, hook: None)]
    torch.manual_seed(seed)
    return model.run_with_hooks(batch["tokens"], "logits", batch["types"], batch["mask"], fwd_hooks=hooks)


@every_head
def test_the_same_is_dropped_as_in_hugging_face(hf_class: str, task: str) -> None:
    """From the same state of torch's generator, with each dropout of the configuration at a rate of its own."""
    rates = {key: 0.1 + 0.07 * index for index, key in enumerate(dropouts(hf_class))}
    hf_model, model = twins(hf_class, task, **rates)
    batch = text_batch(model)
    mask = batch["mask"] if model.heads[task].per_position else None
    torch.manual_seed(5)
    output = run_hf(hf_model, batch)
    theirs = output[OF_PAIRS[task]] if OF_PAIRS.get(task) in output else hf_logits(output)
    ours = trained(model, batch, 5)
    assert_parity(ours, theirs, mask)
    assert_changed(trained(model, batch, 6), ours, 0.01)


@pytest.mark.parametrize("hf_class", ENCODERS.values())
def test_nothing_else_is_random(hf_class: str) -> None:
    _, model = twins(hf_class, "masked_lm", **dict.fromkeys(dropouts(hf_class), 0.0))
    batch = text_batch(model)
    assert torch.equal(trained(model, batch, 1), trained(model, batch, 2))
    assert_parity(trained(model, batch, 1), trained(model.eval(), batch, 1))


def test_albert_drops_what_attention_writes_and_nothing_of_the_mlp() -> None:
    _, model = twins("AlbertForMaskedLM", "masked_lm", hidden_dropout_prob=0.5)
    _, cache = model.run_with_cache(text_batch(model)["tokens"], None, names_filter=lambda name: name.endswith("_out"))
    for layer in range(model.cfg.n_layers):
        assert 0.4 < (cache["attn_out", layer] == 0).float().mean() < 0.6
        assert cache["mlp_out", layer].all()
