"""Prints how many bytes neuron rows add to the peak of memory of a plain forward pass (Linux): ``neuron_peak.py HOW``.

HOW is "direct" (direct logit attribution, at one position) or "projected" (rows onto one direction, at every position; the
result is one number a neuron and position). The peak is VmHWM.
"""

import sys

import torch

from bench_additive import BASE, BATCH, POS, POSITION, TARGET, TINY, cached
from encoderlens import HookedEncoder
from encoderlens.analysis import direct_logit_attribution
from load_peak import peak


def main() -> None:
    how, *tiny = sys.argv[1:]
    model = HookedEncoder(TINY if tiny else BASE, device="cpu").eval()
    tokens = torch.randint(model.cfg.d_vocab, (BATCH, POS))
    with torch.inference_mode():
        model(tokens, "hidden")
        before = peak()
        if how == "direct":
            direct_logit_attribution(model, tokens, TARGET, POSITION, neurons=True)
        else:
            cached(model, tokens).stack_neuron_results(-1, project_output_onto=torch.randn(model.cfg.d_model))
        print(peak() - before)


if __name__ == "__main__":
    main()
