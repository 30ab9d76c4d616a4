from tests.tiny import tiny_batch


def test_twin(bert_twin):
    hf, model = bert_twin
    b = tiny_batch()
    ours = model(b["tokens"], "logits", b["types"], b["mask"])
    theirs = hf(b["tokens"], token_type_ids=b["types"], attention_mask=b["mask"]).prediction_logits
    assert (ours - theirs)[b["mask"].bool()].abs().max() < 1e-5 * theirs.abs().max()
    model.run_with_cache(["the doctor walked", "no"])
