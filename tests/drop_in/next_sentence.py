"""Next-sentence prediction on pairs."""

from transformer_lens import BertNextSentencePrediction, HookedEncoder
from transformer_lens.BertNextSentencePrediction import BertNextSentencePrediction as FromItsModule

assert FromItsModule is BertNextSentencePrediction
encoder = HookedEncoder.from_pretrained("bert-base-cased-with-nsp", device="cpu")
nsp = BertNextSentencePrediction(encoder)
pairs = [("She opened the door.", "The room was dark."), ("She opened the door.", "Two plus two is four.")]
print(nsp(pairs, return_type="predictions"))
logits = nsp(pairs)
assert logits.shape == (2, 2)
logits, cache = nsp.run_with_cache(list(pairs[0]))
assert cache["blocks.0.attn.hook_pattern"].shape[0] == 1
