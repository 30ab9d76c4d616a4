"""Patch the stream of a clean sentence into a corrupted one, layer by layer and position by position."""

import torch
import transformer_lens
from transformer_lens import ActivationCache, HookedEncoder
from transformer_lens.utils import get_act_name

torch.set_grad_enabled(False)
model: transformer_lens.HookedEncoder = HookedEncoder.from_pretrained("bert-base-cased", device="cpu")
clean, corrupted = "She opened the [MASK] and left.", "She cooked the [MASK] and left."
clean_tokens, corrupted_tokens = model.to_tokens(clean)[0], model.to_tokens(corrupted)[0]
assert clean_tokens.shape == corrupted_tokens.shape
mask_position = model.get_token_position("[MASK]", clean_tokens)
answer = model.to_single_token("door")
clean_logits, clean_cache = model.run_with_cache(clean_tokens)
assert isinstance(clean_cache, ActivationCache)
corrupted_logits = model(corrupted_tokens)


def metric(logits):
    low, high = corrupted_logits[0, mask_position, answer], clean_logits[0, mask_position, answer]
    return ((logits[0, mask_position, answer] - low) / (high - low)).item()


results = torch.zeros(model.cfg.n_layers, clean_tokens.shape[1])
for layer in range(model.cfg.n_layers):
    for position in range(clean_tokens.shape[1]):

        def patch(resid, hook, position=position):
            resid[:, position] = clean_cache[hook.name][:, position]
            return resid

        results[layer, position] = metric(
            model.run_with_hooks(corrupted_tokens, fwd_hooks=[(get_act_name("resid_pre", layer), patch)])
        )
changed = int((clean_tokens != corrupted_tokens)[0].nonzero())
assert abs(results[0, changed].item() - 1) < 1e-3
