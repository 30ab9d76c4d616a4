"""Read the singular directions of an OV circuit through the unembedding, and composition scores between layers."""

from transformer_lens import FactoredMatrix, HookedEncoder
from transformer_lens.FactoredMatrix import FactoredMatrix as FromItsModule
from transformer_lens.utils import composition_scores, get_corner, transpose

assert FromItsModule is FactoredMatrix
model = HookedEncoder.from_pretrained("bert-base-cased", device="cpu")
ov = model.OV[0, 1]
assert not ov.has_leading_dims
assert model.OV.has_leading_dims
U, S, V = ov.svd()
best = (V[:, 0] @ model.W_U).topk(5).indices
print([model.to_single_str_token(int(token)) for token in best])
print(get_corner(ov), transpose(ov.AB).shape, S[:3])
scores = composition_scores(model.OV[0], model.QK[1])
assert scores.shape == (model.cfg.n_heads, model.cfg.n_heads)
assert (scores > 0).all()
assert (scores <= 1).all()
