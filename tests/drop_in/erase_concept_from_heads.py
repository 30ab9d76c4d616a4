"""Erase a linear concept from the output of each head with a projection found by least squares (LEACE style)."""

import torch
import transformer_lens.utils as utils
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedEncoder import HookedEncoder

model = HookedEncoder.from_pretrained("bert-base-cased", device="cpu")
texts = ["The doctor was tired.", "The doctors were tired.", "A cat was here.", "Two cats were here."]
labels = torch.tensor([0.0, 1.0, 0.0, 1.0])
tokens, types, mask = model.to_tokens(texts)
with torch.no_grad():
    _, cache = model.run_with_cache(tokens, token_type_ids=types, one_zero_attention_mask=mask)
name = utils.get_act_name("z", 0)
z = cache[name][:, 0]
centred = labels - labels.mean()
directions = torch.einsum("b,bhd->hd", centred, z - z.mean(0))
directions = directions / directions.norm(dim=-1, keepdim=True)


def erase(z: torch.Tensor, hook: HookPoint) -> torch.Tensor:
    along = torch.einsum("bphd,hd->bph", z, directions)
    return z - along[..., None] * directions


with torch.no_grad():
    _, erased = model.run_with_cache(tokens, token_type_ids=types, one_zero_attention_mask=mask)
    with model.hooks(fwd_hooks=[(name, erase)]):
        _, erased = model.run_with_cache(tokens, token_type_ids=types, one_zero_attention_mask=mask)
left = torch.einsum("bphd,hd->bph", erased[name], directions)
assert left.abs().max() < 1e-4 * z.abs().max()
