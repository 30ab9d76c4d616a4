"""What must add up on every family: the stream, a logit, and what the lens reads at the end."""

from typing import Any

import torch

from encoderlens import HookedEncoder
from encoderlens.analysis import direct_logit_attribution, logit_lens
from tests.by_hand import places, stream
from tests.parity import assert_parity
from tests.tiny import tiny_batch, tiny_hf

ROWS = {torch.float32: 1e-5, torch.float64: 1e-12}
LOGITS = {torch.float32: 1e-5, torch.float64: 1e-11}
POSITIONS = [4, 2, 1]  # of tiny_batch


def assert_everything_adds_up(hf_class: str, dtype: torch.dtype, **overrides: Any) -> None:
    """Rows of a padded batch sum to the stream in front of every layer and MLP, and to a logit; the lens ends on the logits."""
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf(hf_class, seed=2, **overrides), device="cpu", dtype=dtype)
    batch = tiny_batch(n_types=model.cfg.n_token_types)
    prepared = model.prepare(batch["tokens"], batch["types"] if model.cfg.n_token_types else None, batch["mask"])
    logits, cache = model.run_with_cache(prepared, names_filter=lambda name: True)
    for layer, mid in places(model):
        expected = stream(cache, layer, mid)
        assert_parity(cache.decompose_resid(layer, mid).sum(0), expected, batch["mask"], ROWS[dtype])
        assert_parity(cache.get_full_resid_decomposition(layer, mid).sum(0), expected, batch["mask"], ROWS[dtype])
    head = model.task_head()
    at = POSITIONS if head.per_position else None
    scores = logits[torch.arange(3), torch.tensor(POSITIONS)] if head.per_position else logits
    for neurons in (False, True):
        rows = direct_logit_attribution(model, prepared, 1, at, baseline=2, neurons=neurons)
        assert rows.error < LOGITS[dtype]
        assert_parity(rows.total, (scores[:, 1] - scores[:, 2]).detach(), tolerance=LOGITS[dtype])
    lens = logit_lens(model, prepared, None if at is None else [[position] for position in at], top_k=1000)
    values = lens.values[-1].squeeze(1) if head.per_position else lens.values[-1]
    ids = lens.ids[-1].squeeze(1) if head.per_position else lens.ids[-1]
    assert_parity(values, scores.softmax(-1).detach().gather(-1, ids))
