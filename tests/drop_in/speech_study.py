"""How much each layer of a speech encoder says about the loudness of a frame, and what it transcribes."""

import soundfile
import torch
from transformer_lens import HookedAudioEncoder
from transformer_lens.HookedAudioEncoder import HookedAudioEncoder as FromItsModule

assert FromItsModule is HookedAudioEncoder
model = HookedAudioEncoder.from_pretrained("facebook/hubert-base-ls960", device="cpu")
wave, rate = soundfile.read("speech.wav", dtype="float32")
waveform = torch.from_numpy(wave)
with torch.no_grad():
    frames, mask = model.to_frames([waveform], sampling_rate=rate)
    _, cache = model.run_with_cache((frames, mask), remove_batch_dim=True)
hidden = torch.stack(cache.hidden_states)
assert hidden.shape[0] == model.cfg.n_layers + 1
loudness = frames[0].norm(dim=-1)
centred = hidden - hidden.mean(1, keepdim=True)
fit = torch.linalg.lstsq(centred.double(), (loudness - loudness.mean()).double().expand(len(hidden), -1)[..., None])
assert fit.solution.isfinite().all()
