"""Time of pseudo-log-likelihoods on the embedded checkpoint, against a loop over Hugging Face's model with one masked copy at a
time; and how far the two are apart.
"""

from importlib.resources import files

import torch
from torch import Tensor

from encoderlens import HookedEncoder
from encoderlens.analysis import pseudo_log_likelihood
from timing import benchmark_options, interleaved, print_row

NAME = "encoderlens/tiny-bert"
SUBJECTS = ("The boys", "Her sister", "My old friends", "The king")
REST = ("went home.", "lost a book.", "saw the house.", "came in.", "had no time.", "sat by the door.")
SENTENCES = [f"{subject} {rest}" for subject in SUBJECTS for rest in REST]


def main() -> None:
    from transformers import BertForMaskedLM

    options = benchmark_options(__doc__)
    torch.set_num_threads(options.threads or 1)
    sentences = SENTENCES[:2] if options.tiny else SENTENCES
    model = HookedEncoder.from_pretrained(NAME, device="cpu")
    folder = files("encoderlens") / "checkpoints" / NAME.rpartition("/")[2]
    reference = BertForMaskedLM.from_pretrained(str(folder), dtype=torch.float32).eval()

    def batched() -> Tensor:
        return pseudo_log_likelihood(model, sentences, "original").values

    def one_by_one() -> Tensor:
        return torch.stack([loop(reference, model, sentence) for sentence in sentences])

    expected = one_by_one()
    apart = float(((batched() - expected) / expected).abs().max())
    timings = interleaved({"batched": batched, "one by one": one_by_one}, options.pairs)
    print(f"{len(sentences)} sentences, {torch.get_num_threads()} thread, {options.pairs} pairs, torch {torch.__version__}")
    print_row("", "time", "one by one / batched (quartiles)", widths=(24, 12, 32))
    speed = f"{timings.ratio('one by one', 'batched'):.1f}"
    print_row("batched", f"{timings.milliseconds('batched'):.0f} ms", speed, widths=(24, 12, 32))
    print_row("one by one", f"{timings.milliseconds('one by one'):.0f} ms", widths=(24, 12, 32))
    print(f"the two are apart by {apart:.0e} of a sum at most")


@torch.inference_mode()
def loop(reference: torch.nn.Module, model: HookedEncoder, sentence: str) -> Tensor:
    """The sum over a sentence's tokens, each masked in a run of its own."""
    tokens, _, _ = model.to_tokens(sentence)
    total = torch.zeros(())
    for position in range(1, tokens.shape[1] - 1):
        masked = tokens.clone()
        masked[0, position] = model.tokenizer.mask_token_id
        total = total + reference(masked).logits[0, position].log_softmax(-1)[tokens[0, position]]
    return total


if __name__ == "__main__":
    main()
