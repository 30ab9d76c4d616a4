"""Speed on the same random weights of HuBERT-base's size, here and in TransformerLens' HookedAudioEncoder (3.9).

A ratio below 1 means that EncoderLens is faster. Run it in the peers' environment: ``make bench-peers``. Weights go through the
state dict of theirs, and the models must agree before anything is timed.
"""

import warnings
from typing import Any

import torch
import transformer_lens  # pyright: ignore[reportMissingImports]
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from encoderlens import HookedAudioEncoder
from timing import benchmark_options, interleaved, print_row

OURS, THEIRS = "encoderlens", "transformer_lens"
WIDTHS = (28, 11, 14, 18, 24)
RATE = 16_000
SIZES = {"d_model": 768, "n_layers": 12, "n_heads": 12, "d_head": 64, "d_mlp": 3072, "n_ctx": 8192}
TINY = {"d_model": 48, "n_layers": 2, "n_heads": 4, "d_head": 12, "d_mlp": 64, "n_ctx": 8192}
SAME = {"act_fn": "gelu", "eps": 1e-5, "attention_dir": "bidirectional", "device": "cpu", "d_vocab": -1}


def main() -> None:
    options = benchmark_options(__doc__)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    warnings.simplefilter("ignore", DeprecationWarning)
    theirs, ours = _twins(TINY if options.tiny else SIZES)
    print(f"HuBERT-base, float32, {torch.get_num_threads()} threads, {options.pairs} pairs, torch {torch.__version__}")
    print_row("", "clips x s", "encoderlens", "transformer_lens", "ratio (quartiles)", widths=WIDTHS)
    clips = [torch.randn(5 * RATE), torch.randn(5 * RATE)]
    runs = {
        "hidden": (lambda: ours(clips), lambda: theirs(clips)),
        "run_with_cache": (lambda: ours.run_with_cache(clips), lambda: theirs.run_with_cache(clips)),
    }
    with torch.inference_mode():
        difference, scale = (ours(clips) - theirs(clips)).abs().max(), ours(clips).abs().max()
        if difference > 1e-5 * scale:
            raise SystemExit(f"the models differ by {difference / scale:.1e} of the largest value")
        for title, (run_ours, run_theirs) in runs.items():
            if options.only in title:
                timings = interleaved({OURS: run_ours, THEIRS: run_theirs}, options.pairs)
                times = (f"{timings.milliseconds(name):.0f} ms" for name in (OURS, THEIRS))
                print_row(title, "2 x 5", *times, f"{timings.ratio(OURS, THEIRS):.3f}", widths=WIDTHS)


def _twins(sizes: dict[str, int]) -> tuple[Any, HookedAudioEncoder]:
    """A TransformerLens model with random weights, put together as its loader does, and the same model here."""
    torch.manual_seed(0)
    theirs = transformer_lens.HookedAudioEncoder(sizes | SAME).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    width, layers, heads = sizes["d_model"], sizes["n_layers"], sizes["n_heads"]
    config = HubertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=sizes["d_mlp"]
    )
    theirs.hubert_model = HubertModel(config).eval()
    theirs.processor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    ours = HookedAudioEncoder.from_transformer_lens_state_dict(theirs.state_dict(), sizes | SAME, processor=theirs.processor)
    return theirs, ours


if __name__ == "__main__":
    main()
