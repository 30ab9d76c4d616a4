"""Run the parts of a model by hand, as in a tutorial."""

import torch
from transformer_lens import HookedEncoder, HookedRootModule
from transformer_lens.components import Embed
from transformer_lens.hook_points import HookedRootModule as FromHookPoints

assert FromHookPoints is HookedRootModule
model = HookedEncoder.from_pretrained("bert-base-cased", device="cpu")
assert isinstance(model.embed, Embed)
tokens = model.to_tokens("She opened the door.")[0]
with torch.no_grad():
    resid = model.embed(tokens)
    for block in model.blocks:
        attended = block.attn(resid, resid, resid)
        resid = block(resid)
    logits = model.unembed(model.mlm_head(resid))
    expected = model(tokens)
assert attended.shape == resid.shape
assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
model.set_use_attn_result(True)
model.set_use_split_qkv_input(True)
model.set_use_hook_mlp_in(True)
_, cache = model.run_with_cache(tokens)
assert cache["result", 0].shape == (*tokens.shape, model.cfg.n_heads, model.cfg.d_model)
assert cache["q_input", 0].shape == cache["result", 0].shape
