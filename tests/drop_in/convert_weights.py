"""Build a configuration by hand and load a state dict of its own making."""

import torch
from transformer_lens import HookedEncoder, HookedTransformerConfig
from transformer_lens.config import HookedTransformerConfig as FromConfig

assert FromConfig is HookedTransformerConfig
cfg = HookedTransformerConfig(
    n_layers=2, d_model=32, n_heads=4, d_head=8, d_mlp=64, n_ctx=24, d_vocab=50, act_fn="gelu",
    attention_dir="bidirectional", seed=1,
)  # fmt: skip
cfg = HookedTransformerConfig.from_dict(cfg.to_dict())
assert HookedTransformerConfig.unwrap(cfg) is cfg
source, target = HookedEncoder(cfg), HookedEncoder(cfg.to_dict())
target.load_state_dict(source.state_dict())
tokens = torch.randint(0, cfg.d_vocab, (2, 7))
assert torch.equal(source.eval()(tokens), target.eval()(tokens))
again = HookedEncoder(source.cfg)
assert again.cfg.d_mlp == cfg.d_mlp
