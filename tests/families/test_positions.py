"""Positions of every text family: padding on either side and inside, the longest input, and a table that is cut."""

from typing import Any

import pytest
import torch
from torch import Tensor

from encoderlens import HookedEncoder
from encoderlens.components.embed import AbsolutePositions
from encoderlens.errors import InputError
from tests.families.test_parity import run_hf
from tests.parity import assert_changed, assert_parity
from tests.text_families import ENCODERS, MASKED_LM, hf_twin, text_model
from tests.tiny import tiny_batch

every_encoder = pytest.mark.parametrize(("hf_class", "variant"), MASKED_LM, ids=lambda value: value)


def as_batch(model: HookedEncoder, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Every type at every place, where there are types."""
    return {
        "tokens": tokens,
        "mask": mask,
        "types": torch.arange(tokens.numel()).view_as(tokens) % max(model.cfg.n_token_types, 1),
    }


def hidden(model: HookedEncoder, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(batch["tokens"], "hidden", batch["types"], batch["mask"])


def assert_as_hugging_face(hf_model: Any, model: HookedEncoder, batch: dict[str, Tensor]) -> None:
    with torch.no_grad():
        theirs = run_hf(hf_model, batch, output_hidden_states=True).hidden_states[-1]
    assert_parity(hidden(model, batch), theirs, batch["mask"])


@every_encoder
def test_padding_on_either_side_and_inside(hf_class: str, variant: str) -> None:
    hf_model, model = hf_twin(hf_class, variant), text_model(hf_class, None, variant, torch.float32)
    pad, tokens = hf_model.config.pad_token_id, torch.randint(10, 150, (4, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[0, :3], mask[1, 6:], mask[2, 4] = 0, 0, 0
    tokens = tokens.masked_fill(mask == 0, pad)
    tokens[3, 5] = pad  # a padding token that the mask calls real
    assert_as_hugging_face(hf_model, model, as_batch(model, tokens, mask))


@pytest.mark.parametrize("hf_class", ENCODERS.values())
def test_padding_in_front_moves_a_text_along_a_table_of_positions_and_along_nothing_else(hf_class: str) -> None:
    hf_model, model = hf_twin(hf_class), text_model(hf_class, None, "plain", torch.float32)
    pad = hf_model.get_input_embeddings().padding_idx
    alone = as_batch(model, 10 + torch.arange(6)[None], torch.ones(1, 6, dtype=torch.long))
    padded = {name: torch.nn.functional.pad(tensor, (3, 0)) for name, tensor in alone.items()}
    padded["tokens"][:, :3] = pad
    ours, moved = hidden(model, alone), hidden(model, padded)[:, 3:]
    if type(model.embed.pos_embed) is AbsolutePositions:
        assert_changed(moved, ours)
    else:
        assert_parity(moved, ours)


@every_encoder
def test_the_longest_input_and_one_that_is_too_long(hf_class: str, variant: str) -> None:
    hf_model, model = hf_twin(hf_class, variant), text_model(hf_class, None, variant, torch.float32)
    n_ctx = model.cfg.n_ctx
    tokens = 10 + torch.arange(n_ctx)[None] % 150
    assert_as_hugging_face(hf_model, model, as_batch(model, tokens, torch.ones_like(tokens)))
    with pytest.raises(InputError, match=rf"{n_ctx + 1}\b.*\b{n_ctx}\b"):
        model(torch.full((1, n_ctx + 1), 10))


@pytest.mark.parametrize("hf_class", ENCODERS.values())
def test_fewer_positions_on_request(hf_class: str) -> None:
    hf_model, full = hf_twin(hf_class), text_model(hf_class, None, "plain", torch.float32)
    short = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu", n_ctx=11)
    assert short.cfg.n_ctx == 11
    batch = tiny_batch(n_types=full.cfg.n_token_types)
    assert torch.equal(hidden(short, batch), hidden(full, batch))
    with pytest.raises(InputError, match=r"12\b.*\b11\b"):
        short(torch.full((1, 12), 10))
    if full.embed.pos_embed is not None:
        assert torch.equal(short.W_pos, full.W_pos[:11])
    back = short.to_hf()
    assert back.config.max_position_embeddings == hf_model.config.max_position_embeddings - (full.cfg.n_ctx - 11)
    assert_as_hugging_face(back, full, batch)
    again = HookedEncoder.from_pretrained(hf_model=back, device="cpu")
    assert again.cfg.encoder == short.cfg.encoder
    assert torch.equal(hidden(again, batch), hidden(full, batch))
