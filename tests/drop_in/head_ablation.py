"""Zero one head at a time and see what the answer loses."""

import torch
from transformer_lens import HookedEncoder, utils

torch.set_grad_enabled(False)
model = HookedEncoder.from_pretrained("bert-base-cased", device="cpu")
prompt = "She opened the [MASK] and walked into the room."
answer = model.to_single_token("door")
position = model.get_token_position("[MASK]", prompt)
tokens = model.to_tokens(prompt)[0]
baseline = model(tokens)[0, position, answer].item()
drops = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
for layer in range(model.cfg.n_layers):
    for head in range(model.cfg.n_heads):

        def ablate(z, hook, head=head):
            z[:, :, head, :] = 0.0
            return z

        logits = model.run_with_hooks(tokens, fwd_hooks=[(utils.get_act_name("z", layer), ablate)])
        drops[layer, head] = baseline - logits[0, position, answer].item()
assert drops.isfinite().all()
assert drops.abs().max() > 0
ranks = utils.test_prompt(prompt, ["door", "window"], model, print_details=False)
assert ranks[0] < ranks[1]
