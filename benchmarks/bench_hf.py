"""Speed on random weights of BERT-base's size, here and in Hugging Face transformers with fused attention (SDPA).

A ratio below 1 means that EncoderLens is faster. "of GEMM" is the rate of the model's matrix products in units of the rate that
the same machine reaches, in the same rounds, when it computes the products with the model's weights and nothing else.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM
from transformers.utils import logging

from encoderlens import HookedEncoder
from timing import Run, Timings, benchmark_options, interleaved, matmul_flops, print_row, weight_products

OURS, THEIRS, GEMM = "encoderlens", "transformers", "gemm"
TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99}
SHAPES = ((8, 128), (1, 16), (1, 128), (32, 64))


@dataclass(frozen=True)
class Case:
    """One row: what runs, on which token ids [batch pos], here and there."""

    title: str
    tokens: Tensor
    ours: Run
    theirs: Run
    is_forward: bool = True


def main() -> None:
    options = benchmark_options(__doc__)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    logging.set_verbosity_error()
    torch.manual_seed(0)
    config = BertConfig.from_dict(TINY if options.tiny else {})
    config._attn_implementation = "sdpa"
    hf_model = BertForMaskedLM(config).eval()
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    print(f"BERT-base, float32, {torch.get_num_threads()} threads, {options.pairs} pairs, torch {torch.__version__}")
    print_row("", "batch", "encoderlens", "transformers", "ratio (quartiles)", "of GEMM")
    for case in _cases(model, hf_model):
        if options.only in case.title:
            print_row(*_row(case, model, options.pairs))


def _cases(model: HookedEncoder, hf_model: BertForMaskedLM) -> Iterator[Case]:
    bert, vocab = hf_model.bert, model.cfg.d_vocab
    for batch, pos in SHAPES:
        tokens, every = torch.randint(vocab, (batch, pos)), torch.ones(batch, pos, dtype=torch.long)
        yield _forward("hidden", tokens, every, model, lambda t, m: bert(t, attention_mask=m).last_hidden_state)
    tokens, every = torch.randint(vocab, (8, 128)), torch.ones(8, 128, dtype=torch.long)
    padded = (torch.arange(128) < torch.arange(128, 32, -12)[:, None]).long()
    yield _forward("hidden, padded", tokens, padded, model, lambda t, m: bert(t, attention_mask=m).last_hidden_state)
    yield _forward("logits", tokens, every, model, lambda t, m: hf_model(t, attention_mask=m).logits)
    yield _backward(tokens, model, hf_model)
    yield _cache_all(tokens, model, hf_model)


def _forward(
    returns: str, tokens: Tensor, mask: Tensor, model: HookedEncoder, theirs: Callable[[Tensor, Tensor], Tensor]
) -> Case:
    return_type = "logits" if returns == "logits" else "hidden"

    @torch.inference_mode()
    def run_ours() -> Tensor:
        return model(tokens, return_type, one_zero_attention_mask=mask)

    @torch.inference_mode()
    def run_theirs() -> Tensor:
        return theirs(tokens, mask)

    torch.testing.assert_close(run_ours()[mask.bool()], run_theirs()[mask.bool()], rtol=0, atol=1e-4)
    return Case(f"forward: {returns}", tokens, run_ours, run_theirs, is_forward=returns != "logits")


def _backward(tokens: Tensor, model: HookedEncoder, hf_model: BertForMaskedLM) -> Case:
    def run_ours() -> None:
        model.zero_grad(set_to_none=True)
        model(tokens, "hidden").square().mean().backward()

    def run_theirs() -> None:
        hf_model.zero_grad(set_to_none=True)
        hf_model.bert(tokens).last_hidden_state.square().mean().backward()

    return Case("forward and backward", tokens, run_ours, run_theirs, is_forward=False)


def _cache_all(tokens: Tensor, model: HookedEncoder, hf_model: BertForMaskedLM) -> Case:
    eager = copy.deepcopy(hf_model.bert)
    eager.set_attn_implementation("eager")

    @torch.inference_mode()
    def run_ours() -> object:
        return model.run_with_cache(tokens, "hidden")

    @torch.inference_mode()
    def run_theirs() -> object:
        return eager(tokens, output_hidden_states=True, output_attentions=True)

    return Case("cache of every hook (theirs: hidden states, attentions)", tokens, run_ours, run_theirs)


def _row(case: Case, model: HookedEncoder, rounds: int) -> list[str]:
    runs = {OURS: case.ours, THEIRS: case.theirs}
    if case.is_forward:
        runs[GEMM] = torch.inference_mode()(weight_products(model.blocks, *case.tokens.shape))
    timings = interleaved(runs, rounds)
    return [
        case.title,
        " x ".join(map(str, case.tokens.shape)),
        f"{timings.milliseconds(OURS):.1f} ms",
        f"{timings.milliseconds(THEIRS):.1f} ms",
        f"{timings.ratio(OURS, THEIRS):.3f}",
        f"{_share(timings, model, case):.0%}" if case.is_forward else "",
    ]


def _share(timings: Timings, model: HookedEncoder, case: Case) -> float:
    cfg = model.cfg
    weights, attention = matmul_flops(cfg.n_layers, cfg.d_model, cfg.d_mlp, *case.tokens.shape)
    return (1 + attention / weights) / timings.ratio(OURS, GEMM).median


if __name__ == "__main__":
    main()
