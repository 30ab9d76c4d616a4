"""Next-sentence prediction: as methods, and as TransformerLens' wrapper."""

from typing import Any

import pytest
import torch

from encoderlens import BertNextSentencePrediction, HookedEncoder
from encoderlens.errors import InputError, TaskError
from tests.parity import assert_parity
from tests.tiny import tiny_batch, tiny_hf

PAIR = ("the doctor walked.", "to the hospital")


@pytest.fixture
def nsp(bert: HookedEncoder) -> BertNextSentencePrediction:
    return BertNextSentencePrediction(bert)


def test_logits_equal_hugging_face(bert_twin: Any, nsp: BertNextSentencePrediction) -> None:
    batch = tiny_batch()
    ours = nsp(batch["tokens"], "logits", batch["types"], batch["mask"])
    theirs = bert_twin[0](batch["tokens"], token_type_ids=batch["types"], attention_mask=batch["mask"])
    assert_parity(ours, theirs.seq_relationship_logits)


def test_a_list_of_two_strings_is_one_pair(bert: HookedEncoder, nsp: BertNextSentencePrediction) -> None:
    logits = nsp(list(PAIR))
    assert logits.shape == (1, 2)
    assert torch.equal(logits, bert.next_sentence(PAIR))
    assert torch.equal(logits, bert.next_sentence([PAIR]))
    assert all(torch.equal(a, b) for a, b in zip(nsp.to_tokens(list(PAIR)), bert.to_tokens(PAIR), strict=True))


def test_verdicts(nsp: BertNextSentencePrediction) -> None:
    verdicts = ("The sentences are sequential", "The sentences are NOT sequential")
    best = int(nsp(list(PAIR)).argmax())
    assert nsp(list(PAIR), "predictions") == verdicts[best]
    assert nsp([PAIR, PAIR], "predictions") == [verdicts[best]] * 2
    assert nsp(list(PAIR), None) is None


def test_loss(bert: HookedEncoder) -> None:
    loss = bert.next_sentence([PAIR, PAIR], "loss", labels=torch.tensor([0, 1]))
    assert_parity(loss, -bert.next_sentence(PAIR).log_softmax(-1).mean())
    assert torch.equal(BertNextSentencePrediction(bert)([PAIR, PAIR], "loss", labels=torch.tensor([0, 1])), loss)


def test_hooks_and_caches_work(bert: HookedEncoder, nsp: BertNextSentencePrediction) -> None:
    logits, cache = nsp.run_with_cache(list(PAIR))
    assert torch.equal(cache["nsp_head.hook_nsp_out"], logits)
    assert cache["pooler.hook_pooler_out"].shape == (1, 40)
    zeroed = nsp.run_with_hooks(list(PAIR), fwd_hooks=[("pooler.hook_pooler_out", lambda tensor, hook: tensor * 0)])
    assert_parity(zeroed, bert.nsp_head.b[None])
    with nsp.hooks([("pooler.hook_pooler_out", lambda tensor, hook: tensor * 0)]):
        assert torch.equal(nsp(list(PAIR)), zeroed)
    assert bert.task == "masked_lm"


def test_what_is_not_a_pair_is_refused(nsp: BertNextSentencePrediction) -> None:
    for run in (nsp, nsp.run_with_cache, nsp.run_with_hooks):
        with pytest.raises(InputError, match="needs token_type_ids"):
            run(tiny_batch()["tokens"])
        for text in ("one sentence", ["one", "two", "three"]):
            with pytest.raises(InputError, match="takes a pair"):
                run(text)


def test_tokens_with_types_run_in_every_way(nsp: BertNextSentencePrediction) -> None:
    batch = tiny_batch()
    plain = nsp(batch["tokens"], "logits", batch["types"], batch["mask"])
    assert_parity(nsp.run_with_cache(batch["tokens"], "logits", batch["types"], batch["mask"])[0], plain)
    assert_parity(
        nsp.run_with_hooks(batch["tokens"], token_type_ids=batch["types"], one_zero_attention_mask=batch["mask"]), plain
    )


def test_a_model_without_the_head_is_refused() -> None:
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("BertForMaskedLM"), device="cpu")
    with pytest.raises(TaskError, match="no 'next_sentence' head; its heads: masked_lm"):
        BertNextSentencePrediction(model)
