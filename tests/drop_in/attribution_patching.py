"""Attribution patching: clean minus corrupted activations times the gradients of the corrupted run."""

import torch
from transformer_lens import HookedEncoder

model = HookedEncoder.from_pretrained("bert-base-cased", device="cpu")
clean_tokens = model.to_tokens("She opened the [MASK] and left.")[0]
corrupted_tokens = model.to_tokens("She cooked the [MASK] and left.")[0]
position, answer = model.get_token_position("[MASK]", clean_tokens), model.to_single_token("door")
names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
gradients = {}


def keep_gradient(gradient, hook):
    gradients[hook.name] = gradient.detach().clone()


_, clean_cache = model.run_with_cache(clean_tokens, names_filter=names)
model.reset_hooks()
for name in names:
    model.add_hook(name, keep_gradient, "bwd")
_, corrupted_cache = model.run_with_cache(corrupted_tokens, names_filter=lambda name: name in names)
model(corrupted_tokens)[0, position, answer].backward()
model.reset_hooks()
attributions = torch.stack([((clean_cache[name] - corrupted_cache[name]) * gradients[name]).sum((0, 1, 3)) for name in names])
assert attributions.shape == (model.cfg.n_layers, model.cfg.n_heads)
assert attributions.abs().max() > 0
