"""A model that nobody holds any more is gone at once, with its weights, whatever was done with it before."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn.utils import prune

from encoderlens import HookedAudioEncoder, HookedEncoder
from encoderlens.analysis import direct_logit_attribution, fill_mask, logit_lens, pseudo_log_likelihood
from encoderlens.errors import InputError
from encoderlens.linearised import linearised
from tests.speech import snippets, tiny_speech
from tests.text_families import new_text_model
from tests.tiny import tiny_hf

Model = HookedEncoder | HookedAudioEncoder
Uses = dict[str, Callable[[Any, Any], Any]]


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Without the collector of cycles."""
    gc.disable()
    yield
    gc.enable()


def raise_in_a_hook(model: Model, inputs: Any) -> None:
    def hook(tensor: torch.Tensor, hook: Any) -> None:
        raise RuntimeError

    try:
        model.run_with_hooks(inputs, fwd_hooks=[("blocks.1.hook_resid_pre", hook)])
    except RuntimeError:
        return


def ask_for_nonsense(model: Model, inputs: Any) -> None:
    try:
        model(inputs, return_type="nonsense")
    except InputError:
        return


def hook_that_holds_the_model(model: Model, inputs: Any) -> None:
    model.run_with_hooks(inputs, fwd_hooks=[("blocks.1.hook_resid_pre", lambda tensor, hook: model.W_Q and None)])


def run_linearised(model: Model, inputs: Any) -> None:
    with linearised(model):
        model(inputs)


def decompose(model: Model, inputs: Any) -> None:
    _, cache = model.run_with_cache(inputs)
    cache.get_full_resid_decomposition(expand_neurons=False)
    cache.stack_head_results()


ANY: Uses = {
    "run": lambda model, inputs: model(inputs),
    "gradients": lambda model, inputs: model(inputs).sum().backward(),
    "cache": lambda model, inputs: model.run_with_cache(inputs),
    "cache of gradients": lambda model, inputs: model.run_with_cache(inputs, incl_bwd=True, loss_fn=torch.sum),
    "decomposition": decompose,
    "error in a hook": raise_in_a_hook,
    "error before the run": ask_for_nonsense,
    "permanent hook": lambda model, inputs: model.add_perma_hook("blocks.0.hook_resid_pre", lambda tensor, hook: None),
    "linearised": run_linearised,
    "hugging face": lambda model, inputs: model.to_hf(),
    "copies": lambda model, inputs: (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))),
    "cast": lambda model, inputs: model.double().float(),
    "weights assigned": lambda model, inputs: model.load_state_dict(model.state_dict(), assign=True),
    "pruned": lambda model, inputs: prune.l1_unstructured(model.blocks[0].attn.q, "weight", 0.3),
}
TEXT = "the [MASK] walked"
OF_TEXT: Uses = {
    "attribution": lambda model, inputs: direct_logit_attribution(model, TEXT, 17),
    "logit lens": lambda model, inputs: logit_lens(model, TEXT),
    "masks filled": lambda model, inputs: fill_mask(model, TEXT),
    "likelihood": lambda model, inputs: pseudo_log_likelihood(model, ["the doctor walked"]),
    "circuits": lambda model, inputs: model.QK.svd(),
}
OF_SPEECH: Uses = {
    "frames": lambda model, inputs: model.to_frames(inputs),
    "transcripts": lambda model, inputs: model(inputs, return_type="predictions"),
    "attribution": lambda model, inputs: direct_logit_attribution(model, inputs[0], 5, 3),
}


@pytest.mark.parametrize("uses", [{}, ANY | OF_TEXT], ids=["nothing", "everything"])
def test_a_text_model_is_freed_after(uses: Uses, uncollected: None, tokenizer: Any) -> None:
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("BertForPreTraining"), tokenizer=tokenizer, device="cpu")
    held = held_after(uses, model, torch.arange(9)[None])
    del model
    assert [kind for kind, reference in held if reference() is not None] == []


@pytest.mark.parametrize("uses", [{}, ANY | OF_SPEECH], ids=["nothing", "everything"])
def test_a_speech_model_is_freed_after(uses: Uses, uncollected: None) -> None:
    model = tiny_speech("HubertForCTC")
    held = held_after(uses, model, snippets())
    del model
    assert [kind for kind, reference in held if reference() is not None] == []


def held_after(uses: Uses, model: Model, inputs: Any) -> list[tuple[str, Any]]:
    """Weak references to the model, its modules and its parameters, after all that was done with it."""
    for use in uses.values():
        use(model, inputs)
    modules = [(f"module {name}", weakref.ref(module)) for name, module in model.named_modules()]
    return modules + [(f"parameter {name}", weakref.ref(parameter)) for name, parameter in model.named_parameters()]


def test_a_configuration_outlives_its_model(uncollected: None) -> None:
    model = new_text_model("BertModel").half()
    cfg, n_params = model.cfg, model.cfg.n_params
    del model
    assert (cfg.dtype, cfg.device, cfg.n_params) == (torch.float16, torch.device("cpu"), n_params)
    assert "dtype=torch.float16" in repr(cfg)
    assert copy.deepcopy(cfg).dtype == torch.float16


def test_a_shallow_copy_has_a_configuration_of_its_own(uncollected: None) -> None:
    model = new_text_model("BertModel")
    twin = copy.copy(model)
    twin.cfg.use_attn_result = True
    assert not model.cfg.use_attn_result
    del twin
    assert model.cfg.dtype == torch.float32
    model.double()
    assert model.cfg.dtype == torch.float64
