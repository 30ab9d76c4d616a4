"""Attention maps of one sentence, with token labels."""

import torch
from transformer_lens import HookedEncoder, utils

model = HookedEncoder.from_pretrained("bert-base-cased", device="cpu")
text = "The old man sat down in his chair."
labels = model.to_str_tokens(text)
with torch.inference_mode():
    _, cache = model.run_with_cache(text, remove_batch_dim=True)
for layer in range(model.cfg.n_layers):
    pattern = utils.to_numpy(cache["pattern", layer])
    assert pattern.shape == (model.cfg.n_heads, len(labels), len(labels))
assert model.to_string(model.to_tokens(text)[0])[0].startswith("[CLS]")
