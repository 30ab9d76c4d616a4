"""Batches of text: what may go in, whose tensors they are, which models take them, and where their tokens come from."""

import copy
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.normalizers import Replace
from torch import Tensor
from transformers import AutoTokenizer

from encoderlens import HookedEncoder
from encoderlens.analysis import fill_mask, pseudo_log_likelihood
from encoderlens.config import RelativeBiasPart
from encoderlens.errors import InputError
from tests.parity import assert_changed, assert_parity
from tests.text_families import new_text_model, text_model
from tests.tiny import TOKENIZER, tiny_batch, tiny_hf

# Whole numbers of every dtype

UNSIGNED = [torch.uint8, torch.uint16, torch.uint32, torch.uint64]
DTYPES = [*UNSIGNED, torch.int8, torch.int16, torch.int32]


@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ids_types_masks_labels_and_positions_of_every_integer_dtype(
    bert: HookedEncoder, dtype: torch.dtype, as_array: bool
) -> None:
    batch = {name: tensor % 120 for name, tensor in tiny_batch().items()}
    labels, at = batch["tokens"].clone(), torch.tensor([[0, 3], [1, 2], [3, 3]])

    def other(tensor: Tensor) -> Any:
        return tensor.to(dtype).numpy() if as_array else tensor.to(dtype)

    tokens, *beside = (other(batch[name]) for name in ("tokens", "types", "mask"))
    expected = bert(batch["tokens"], "logits", batch["types"], batch["mask"])
    chosen = expected.gather(1, at[..., None].expand(-1, -1, 188))
    assert torch.equal(bert(tokens, "logits", *beside), expected)
    assert torch.equal(bert(tokens, "logits", *beside, logits_at=other(at)), chosen)
    losses = [bert(tokens, "loss", *beside, labels=given) for given in (labels, other(labels))]
    assert torch.equal(*losses)
    assert bert.to_str_tokens(tokens) == bert.to_str_tokens(batch["tokens"])
    assert torch.equal(bert(tokens[0]), bert(batch["tokens"][0]))


def test_arrays_as_people_have_them(bert: HookedEncoder) -> None:
    """Backwards, of another byte order, and of a corpus that may only be read."""
    tokens = tiny_batch()["tokens"].numpy()
    frozen = tokens.astype(np.uint16)
    frozen.flags.writeable = False
    for array in (tokens[::-1, ::-1], tokens.astype(">i4"), frozen):
        assert torch.equal(bert(array), bert(torch.from_numpy(array.astype(np.int64).copy())))


@pytest.mark.parametrize("whole", [np.int64, np.int8, np.uint16])
def test_numpy_integers_wherever_a_whole_number_is_taken(bert: HookedEncoder, whole: Any, unchecked: None) -> None:
    text = "the doctor walked to the [MASK]."
    tokens = bert.to_tokens(text)[0]
    stream = bert(tokens, stop_at_layer=1)
    assert torch.equal(bert(stream, start_at_layer=whole(1)), bert(stream, start_at_layer=1))
    assert torch.equal(bert(tokens, stop_at_layer=whole(2)), bert(tokens, stop_at_layer=2))
    assert torch.equal(bert(tokens, logits_at=whole(3)), bert(tokens, logits_at=3))
    assert torch.equal(bert(tokens, logits_at=[whole(3), 1]), bert(tokens, logits_at=[3, 1]))
    assert fill_mask(bert, text, whole(3), batch_size=whole(2)).values.shape == (1, 3)
    assert pseudo_log_likelihood(bert, text, batch_size=whole(7)).values.shape == ()
    short = HookedEncoder.from_pretrained(hf_model=bert.to_hf(), device="cpu", n_ctx=whole(9))
    assert short.to_hf().config.to_diff_dict()["max_position_embeddings"] == 9


def test_ids_that_no_int64_holds(bert: HookedEncoder) -> None:
    with pytest.raises(InputError, match="the input holds numbers beyond 9223372036854775807"):
        bert(np.full((1, 3), 2**64 - 1, dtype=np.uint64))


# Tensors that cannot be read


def _quantised(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor.float(), 1.0, 0, torch.qint32)


UNREADABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse tensor; give a dense one": lambda tensor: tensor.to_sparse(),
    "sparse tensor; give": lambda tensor: tensor.to_sparse_csr(),
    "nested tensor; give one padded": lambda tensor: torch.nested.nested_tensor(list(tensor)),
    "nested tensor; give one": lambda tensor: torch.nested.nested_tensor(list(tensor), layout=torch.jagged),
    "quantised tensor; give plain numbers": _quantised,
    "on the meta device, which holds no numbers": lambda tensor: tensor.to("meta"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_tensors_that_cannot_be_read_are_refused_by_name(bert: HookedEncoder, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to change two of these kinds
        batch = {name: UNREADABLE[kind](tensor) for name, tensor in tiny_batch().items()}
    tokens = tiny_batch()["tokens"]
    uses: list[tuple[str, Callable[[], Any]]] = [
        ("the input", lambda: bert(batch["tokens"])),
        ("the input", lambda: bert.to_str_tokens(batch["tokens"])),
        ("token_type_ids", lambda: bert(tokens, ..., batch["types"])),
        ("one_zero_attention_mask", lambda: bert(tokens, ..., None, batch["mask"])),
        ("labels", lambda: bert(tokens, "loss", labels=batch["tokens"])),
        ("logits_at", lambda: bert(tokens, logits_at=batch["mask"])),
        ("the residual stream", lambda: bert(batch["tokens"], start_at_layer=1)),
    ]
    for what, use in uses:
        with pytest.raises(InputError, match=f"^{what} is (a )?{kind}"):
            use()


# Half characters

HALF = "half \ud800 a character"


@pytest.mark.parametrize(
    ("use", "where"),
    [
        (lambda model: model(HALF), "^input 0 has half a character, the lone surrogate '.ud800', at place 5: "),
        (lambda model: model.prepare(["the", "doctor", HALF]), "^input 2 has half"),
        (lambda model: model.to_tokens([("the", "doctor"), ("no", HALF)]), "^the second text of input 1 has half"),
        (lambda model: model.to_str_tokens(["the", HALF]), "^input 1 has half"),
        (lambda model: model.align((HALF, "the")), "^the first text of input 0 has half"),
        (lambda model: model.next_sentence(("the", HALF)), "^the second text of input 0 has half"),
        (lambda model: fill_mask(model, [f"the [MASK] {HALF}"]), "^input 0 has half"),
        (lambda model: pseudo_log_likelihood(model, ["the", HALF]), "^input 1 has half"),
        (lambda model: model.heads["masked_lm"].output_index(HALF, model.tokenizer), "^the target has half"),
        (lambda model: setattr(model, "prompt", HALF), "^the prompt has half"),
    ],
)
def test_half_a_character_is_named_with_its_text(bert: HookedEncoder, use: Callable[[HookedEncoder], Any], where: str) -> None:
    with pytest.raises(InputError, match=where):
        use(bert)


# Its tensors are its own


def test_what_the_caller_changes_later_changes_no_batch_and_no_cache(bert: HookedEncoder) -> None:
    given = tiny_batch()
    given["mask"] = given["mask"].bool()
    before = copy.deepcopy(given)
    batch = bert.prepare(given["tokens"], given["types"], given["mask"])
    _, cache = bert.run_with_cache(given["tokens"], "hidden", given["types"], given["mask"])
    loss = bert(given["tokens"], "loss", given["types"], given["mask"], labels=given["tokens"])
    for tensor in given.values():
        tensor.zero_()
    loss.backward()
    assert torch.equal(cache.tokens, before["tokens"])
    assert torch.equal(cache.mask, before["mask"])
    assert torch.equal(batch.token_type_ids, before["types"])
    assert torch.equal(bert(batch), bert(before["tokens"], ..., before["types"], before["mask"]))
    bert.zero_grad()


# Which models take it


@pytest.mark.parametrize(
    ("hf_class", "options", "message"),
    [
        ("BertForMaskedLM", {"vocab_size": 100}, "d_vocab is 188 there, 100 here"),
        ("BertForMaskedLM", {"max_position_embeddings": 8}, "n_ctx is 37 there, 8 here"),
        ("BertForMaskedLM", {"type_vocab_size": 1}, "n_token_types is 2 there, 1 here"),
        ("RobertaForMaskedLM", {"pad_token_id": 4, "max_position_embeddings": 40}, "padding is 1 there, 4 here"),
        ("EsmForMaskedLM", {"token_dropout": False}, "masked is 163 there, None here"),
    ],
)
def test_a_model_that_would_read_it_in_another_way_refuses_it(hf_class: str, options: dict[str, Any], message: str) -> None:
    batch = text_model(hf_class).prepare(torch.tensor([[90, 3]]))
    other = HookedEncoder.from_pretrained(hf_model=tiny_hf(hf_class, **options), device="cpu")
    with pytest.raises(InputError, match=rf"prepared by another model \({message}\): prepare it again"):
        other(batch)


def test_texts_are_the_tokens_of_one_tokenizer_and_one_prompt(bert: HookedEncoder) -> None:
    other, texts = copy.copy(bert), bert.prepare(["the cat", "the dog sat"])
    other.tokenizer = copy.deepcopy(bert.tokenizer)
    other.tokenizer.padding_side = "left"
    assert torch.equal(other(texts), bert(texts)), "the same tokens"
    other.tokenizer.backend_tokenizer.normalizer = Replace("a", "o")
    with pytest.raises(InputError, match=r"another tokenizer made its tokens: \w+ of '.*' there, .* here\): prepare it"):
        other(texts)
    assert torch.equal(other(bert.prepare(texts.tokens, None, texts.sequence.mask)), bert(texts))
    other.tokenizer, other.prompt = bert.tokenizer, "query: "
    with pytest.raises(InputError, match=r"prompt is '' there, 'query: ' here\): prepare it again"):
        other(texts)
    assert other(bert.prepare(("the cat", "the dog"))).shape[0] == 1, "pairs have no prompt"


def test_models_that_are_alike_take_each_others(bert: HookedEncoder) -> None:
    other = HookedEncoder.from_pretrained(hf_model=tiny_hf("BertForPreTraining", seed=7), device="cpu")
    tokens, types, mask = tiny_batch().values()
    assert torch.equal(other(bert.prepare(tokens, types, mask)), other(tokens, ..., types, mask))


def test_what_layers_make_once_of_a_batch_is_that_of_the_model_that_runs_it() -> None:
    """Buckets of distances depend on how far they are single, which two models may disagree on."""
    near = new_text_model("MPNetForMaskedLM", "far apart")
    cfg = near.cfg.encoder
    far = HookedEncoder(replace(cfg, relative=RelativeBiasPart(cfg.attention.n_heads, max_distance=300)), device="cpu").eval()
    far.load_state_dict(near.state_dict())
    tokens = torch.arange(200)[None] % 180 + 2
    batch = near.prepare(tokens)
    with torch.no_grad():
        near(batch)
        assert torch.equal(far(batch), far(tokens))
        assert_changed(far(tokens), near(tokens))


def test_it_follows_the_model_and_leaves_inference_mode(bert: HookedEncoder) -> None:
    given = tiny_batch().values()
    with torch.inference_mode():
        batch = bert.prepare(*given)
        bert(batch)
    bert(batch).sum().backward()
    bert.zero_grad()
    ready = bert.prepare(*given)
    assert bert.prepare(ready) is ready, "with what its layers have made once"
    moved = ready.at(torch.device("meta"))
    for tensor in (moved.token_ids, moved.token_type_ids, moved.sequence.mask):
        assert tensor.device.type == "meta"


# Parts of it


@pytest.mark.parametrize("end", [5, 7])
def test_a_part_has_the_numbers_of_the_whole_where_embeddings_count_mask_tokens(end: int) -> None:
    """A mask token at padding counts in token dropout, as in Hugging Face; padding behind it does not matter."""
    model = text_model("EsmForMaskedLM", dtype=torch.float32)
    tokens, mask = torch.arange(33).view(3, 11) + 10, torch.ones(3, 11, dtype=torch.bool)
    mask[:, end:] = False
    tokens[1, 9] = tokens[0, 3] = model.cfg.embed.mask
    whole = model.prepare(tokens, None, mask)
    with torch.no_grad():
        logits = model(whole)
        for row, pos in enumerate((end, 10, end)):
            part = whole.part(slice(row, row + 1))
            assert part.sequence.pos == pos
            assert_parity(model(part)[0, :end], logits[row, :end])


# Where its tokens come from


def test_alignment_knows_padding_of_the_tokenizer_and_no_mask_of_the_caller(bert: HookedEncoder) -> None:
    texts = [("the doctor", "walked"), ("the nurse was there before", "no"), ("paris", "")]
    tokens = bert.to_tokens(texts)[0]
    mask = torch.ones_like(tokens)
    mask[:, :2] = 0
    for side in ("right", "left"):
        bert.tokenizer.padding_side = side
        try:
            batch = bert.prepare(texts, None, mask)
        finally:
            bert.tokenizer.padding_side = "right"
        for row, text in enumerate(texts):
            assert batch.alignment(row) == bert.align(text)
            assert batch.part(slice(row, row + 1)).alignment(0) == bert.align(text)
    assert bert.align(texts[2]).ids == tuple(bert.tokenizer([texts[2]])["input_ids"][0])
    assert bert.prepare(tokens).alignment(0) is None


def test_several_threads_share_a_tokenizer() -> None:
    """Its padding and its truncation are a state, which each call sets anew."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    model, other = (
        HookedEncoder.from_pretrained(hf_model=tiny_hf("BertForMaskedLM"), tokenizer=tokenizer, device="cpu", n_ctx=n_ctx)
        for n_ctx in (37, 30)
    )
    long = "the doctor " * 30
    uses: list[Callable[[], Any]] = [
        lambda: model.to_tokens([long, "no"])[0].tolist(),
        lambda: model.prepare(["the doctor", "no", "he walked to the hospital"]).tokens.tolist(),
        lambda: model.align(long).ids,
        lambda: other.to_str_tokens([long, "the nurse"]),
        lambda: model.heads["masked_lm"].output_index("Doctor", tokenizer),
    ]
    expected, wrong = [use() for use in uses], []

    def work(first: int) -> None:
        for turn in range(first, first + 30):
            try:
                if uses[turn % 5]() != expected[turn % 5]:
                    wrong.append(f"use {turn % 5} gave something else")
            except Exception as error:
                wrong.append(f"use {turn % 5}: {error!r}")

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
