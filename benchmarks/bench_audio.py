"""Speed on random weights of HuBERT-base's size, here and in Hugging Face transformers with fused attention (SDPA).

A ratio below 1 means that EncoderLens is faster. Both read waveforms that are normalised and padded already.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor
from transformers.utils import logging

from encoderlens import HookedAudioEncoder
from timing import Run, benchmark_options, interleaved, print_row

OURS, THEIRS = "encoderlens", "transformers"
RATE = 16_000
SHAPES = ((2, 5), (1, 2), (1, 20), (8, 5))  # clips x seconds
LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}  # the layout, at base size
TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "conv_dim": (16,) * 7}


def main() -> None:
    options = benchmark_options(__doc__)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    logging.set_verbosity_error()
    torch.manual_seed(0)
    print(f"HuBERT-base, float32, {torch.get_num_threads()} threads, {options.pairs} pairs, torch {torch.__version__}")
    print_row("", "clips x s", "encoderlens", "transformers", "ratio (quartiles)")
    for title, shape, ours, theirs in _cases(TINY if options.tiny else {}):
        if options.only not in title:
            continue
        timings = interleaved({OURS: ours, THEIRS: theirs}, options.pairs)
        milliseconds = (f"{timings.milliseconds(name):.0f} ms" for name in (OURS, THEIRS))
        print_row(title, f"{shape[0]} x {shape[1]}", *milliseconds, f"{timings.ratio(OURS, THEIRS):.3f}")


def _cases(sizes: dict) -> Iterator[tuple[str, tuple[int, int], Run, Run]]:
    model, hf_model = _twins(sizes)
    for shape in SHAPES:
        yield "forward", shape, *_forward(model, hf_model, torch.randn(shape[0], shape[1] * RATE), None)
    waves = torch.randn(2, 5 * RATE)
    yield "forward and backward, to the waveform", (2, 5), *_backward(model, hf_model, waves)
    yield "cache of every hook (theirs: hidden states, attentions)", (2, 5), *_cache_all(model, hf_model, waves)
    model, hf_model = _twins(sizes | LARGE)
    mask = (torch.arange(5 * RATE) < torch.tensor([5, 3])[:, None] * RATE).long()
    yield "forward, layer norm and pre-LN, padded", (2, 5), *_forward(model, hf_model, waves, mask)


def _twins(values: dict) -> tuple[HookedAudioEncoder, HubertModel]:
    config = HubertConfig(**values)
    config._attn_implementation = "sdpa"
    hf_model = HubertModel(config).eval()
    untouched = Wav2Vec2FeatureExtractor(do_normalize=False)
    return HookedAudioEncoder.from_pretrained(hf_model=hf_model, processor=untouched, device="cpu"), hf_model


def _forward(model: HookedAudioEncoder, hf_model: HubertModel, waves: Tensor, mask: Tensor | None) -> tuple[Run, Run]:
    @torch.inference_mode()
    def run_ours() -> Tensor:
        return model(waves, mask)

    @torch.inference_mode()
    def run_theirs() -> Tensor:
        return hf_model(waves, attention_mask=mask).last_hidden_state

    real = model.prepare(waves, mask).sequence.real
    torch.testing.assert_close(run_ours()[real], run_theirs()[real], rtol=0, atol=1e-4)
    return run_ours, run_theirs


def _backward(model: HookedAudioEncoder, hf_model: HubertModel, waves: Tensor) -> tuple[Run, Run]:
    def run_ours() -> None:
        model.zero_grad(set_to_none=True)
        model(waves.clone().requires_grad_()).square().mean().backward()

    def run_theirs() -> None:
        hf_model.zero_grad(set_to_none=True)
        hf_model(waves.clone().requires_grad_()).last_hidden_state.square().mean().backward()

    return run_ours, run_theirs


def _cache_all(model: HookedAudioEncoder, hf_model: HubertModel, waves: Tensor) -> tuple[Run, Run]:
    eager = copy.deepcopy(hf_model)
    eager.set_attn_implementation("eager")

    @torch.inference_mode()
    def run_ours() -> object:
        return model.run_with_cache(waves)

    @torch.inference_mode()
    def run_theirs() -> object:
        return eager(waves, output_hidden_states=True, output_attentions=True)

    return run_ours, run_theirs


if __name__ == "__main__":
    main()
