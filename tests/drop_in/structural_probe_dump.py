"""Dump the hidden states of every layer, one data set per sentence, for a structural probe."""

import h5py
import torch
from transformer_lens import HookedEncoder

model = HookedEncoder.from_pretrained("bert-base-cased", device="cpu")
sentences = ["The keys to the cabinet are on the table.", "She opened the door."]
with h5py.File("layers.hdf5", "w") as file, torch.no_grad():
    for index, sentence in enumerate(sentences):
        tokens, types, mask = model.to_tokens(sentence)
        _, cache = model.run_with_cache(tokens, token_type_ids=types, one_zero_attention_mask=mask, return_type=None)
        layers = torch.stack(cache.hidden_states)[:, 0]
        file.create_dataset(str(index), data=layers.cpu().numpy())
with h5py.File("layers.hdf5") as file:
    assert file["1"].shape[0] == model.cfg.n_layers + 1
    assert file["1"].shape[2] == model.cfg.d_model
