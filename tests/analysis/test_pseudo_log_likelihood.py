"""Pseudo-log-likelihoods, against a loop over Hugging Face's own model with one masked copy at a time."""

import copy
import json
import math
import string
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

import encoderlens
from encoderlens import HookedEncoder
from encoderlens.analysis import minimal_pairs, pseudo_log_likelihood
from encoderlens.analysis.pseudo_log_likelihood import masked_texts
from encoderlens.errors import AnalysisError, InputError, TaskError, TokenizerMissingError
from tests.parity import assert_close, assert_parity, changed_along
from tests.tiny import TOKENIZER, tiny_batch, tiny_hf

METHODS = ("within_word", "original")
TEXTS = [
    "the doctor's traveler walked unbelievably, didn't he?",
    "no",
    "one nurse was new",
    "where are they: at the hospital, (over there) or in my school!",
]
ROLES = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def fast(made, **options):
    """A tokenizer with RoBERTa's special tokens, trained on the texts."""
    names = dict(zip(ROLES, SPECIAL, strict=True)) | {"cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names | options)


def byte_level(splits=True):
    """Byte-level BPE as RoBERTa has it; or one that does not split text into words at all."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splits)
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    return fast(made)


def sentence_piece():
    """Unigram pieces between spaces, as XLM-R has them: punctuation belongs to its word."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=60,
        special_tokens=list(SPECIAL),
        unk_token="<unk>",
        initial_alphabet=list(string.ascii_lowercase),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)])
    return fast(made)


def embedded():
    folder = Path(encoderlens.__file__).parent / "checkpoints" / "tiny-bert"
    return AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


def tiny(hf_class, tokenizer, **options):
    return tiny_hf(hf_class, vocab_size=len(tokenizer), max_position_embeddings=80, **options), tokenizer


TWINS = {
    "embedded": embedded,
    "WordPiece": lambda: tiny("BertForMaskedLM", AutoTokenizer.from_pretrained(TOKENIZER)),
    "byte-level BPE": lambda: tiny("RobertaForMaskedLM", byte_level()),
    "SentencePiece": lambda: tiny("XLMRobertaForMaskedLM", sentence_piece()),
    "WordPiece, pre-LN": lambda: tiny("MegatronBertForMaskedLM", AutoTokenizer.from_pretrained(TOKENIZER)),
}


@pytest.fixture(scope="module", params=TWINS)
def twin(request):
    hf_model, tokenizer = TWINS[request.param]()
    return hf_model, HookedEncoder.from_pretrained(hf_model=hf_model, tokenizer=tokenizer, device="cpu")


@pytest.fixture(scope="module")
def trained():
    return HookedEncoder.from_pretrained("encoderlens/tiny-bert", device="cpu")


@torch.no_grad()
def by_hand(hf_model, tokenizer, text, method):
    """The log-probability of each token, by one run of Hugging Face's model for each."""
    encoding = tokenizer(*((text,) if isinstance(text, str) else text), return_tensors="pt")
    ids, of_text, words = encoding["input_ids"][0], encoding.sequence_ids(0), encoding.word_ids(0)
    found = []
    for position in range(len(ids)):
        if of_text[position] is None:
            continue
        masked = ids.clone()
        masked[position] = tokenizer.mask_token_id
        if method == "within_word":
            for later in range(position + 1, len(ids)):
                if (of_text[later], words[later]) == (of_text[position], words[position]):
                    masked[later] = tokenizer.mask_token_id
        logits = hf_model(**{**encoding, "input_ids": masked[None]}).logits[0, position]
        found.append(logits.log_softmax(-1)[ids[position]])
    return torch.stack(found)


def assert_same(found, expected):
    assert_parity(found, expected)


# The numbers


@pytest.mark.parametrize("method", METHODS)
def test_it_equals_one_masked_copy_at_a_time(twin, method):
    hf_model, model = twin
    found = pseudo_log_likelihood(model, TEXTS, method, batch_size=7)
    for text, log_probs, value in zip(TEXTS, found.log_probs, found.values, strict=True):
        expected = by_hand(hf_model, model.tokenizer, text, method)
        assert_same(log_probs, expected)
        assert_same(value, expected.sum())
    assert found.values.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_pairs_have_their_token_types(twin, method):
    hf_model, model = twin
    pairs = [("the doctor walked", "she was unbelievably new"), ("no", "yes, where?")]
    found = pseudo_log_likelihood(model, pairs, method)
    for pair, log_probs in zip(pairs, found.log_probs, strict=True):
        assert_same(log_probs, by_hand(hf_model, model.tokenizer, pair, method))


def test_the_methods_differ_where_a_word_has_pieces(trained):
    within, original = (pseudo_log_likelihood(trained, "the souvenir was new", method) for method in METHODS)
    assert within.tokens == (("the", "so", "##uven", "##ir", "was", "new"),) == original.tokens
    assert within.words == ((0, 1, 1, 1, 2, 3),)
    differs = changed_along(0, within.log_probs[0], original.log_probs[0])
    assert differs == [False, True, True, False, False, False]
    assert within.values < original.values  # the pieces no longer give each other away


def test_what_is_masked(trained):
    batch = trained.prepare(["the souvenir", "so"])

    def shown(method):
        return [
            " ".join(trained.to_str_tokens(torch.tensor(copy.tokens)))
            for copy in masked_texts(trained, batch, method)[0].copies
        ]

    assert shown("within_word") == [
        "[CLS] [MASK] so ##uven ##ir [SEP]",
        "[CLS] the [MASK] [MASK] [MASK] [SEP]",
        "[CLS] the so [MASK] [MASK] [SEP]",
        "[CLS] the so ##uven [MASK] [SEP]",
    ]
    assert shown("original") == [
        "[CLS] [MASK] so ##uven ##ir [SEP]",
        "[CLS] the [MASK] ##uven ##ir [SEP]",
        "[CLS] the so [MASK] ##ir [SEP]",
        "[CLS] the so ##uven [MASK] [SEP]",
    ]


def test_equal_tokens_in_different_words_are_not_masked_together(trained):
    batch = trained.prepare(("so so", "so"))
    copies = masked_texts(trained, batch, "within_word")[0].copies
    assert [copy.tokens.count(trained.tokenizer.mask_token_id) for copy in copies] == [1, 1, 1]


@pytest.mark.parametrize("method", METHODS)
def test_texts_and_batches_do_not_depend_on_each_other(bert, method):
    texts = ["one nurse", "no", "the doctors walked, then"]
    alone = torch.stack([pseudo_log_likelihood(bert, text, method).values for text in texts])
    for batch_size in (1, 5, 1000):
        assert_same(pseudo_log_likelihood(bert, texts, method, batch_size=batch_size).values, alone)


@pytest.mark.parametrize("method", METHODS)
def test_padding_on_the_left_changes_nothing(bert_twin, method):
    hf_model, right = bert_twin
    tokenizer = copy.deepcopy(right.tokenizer)
    tokenizer.padding_side = "left"
    left = HookedEncoder.from_pretrained(hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    expected, found = (pseudo_log_likelihood(model, TEXTS, method) for model in (right, left))
    assert found.positions == expected.positions
    assert_same(found.values, expected.values)


def test_tokens_get_what_their_text_gets(bert):
    tokens, types, mask = bert.to_tokens(TEXTS)
    expected = pseudo_log_likelihood(bert, TEXTS, "original")
    found = pseudo_log_likelihood(bert, bert.prepare(tokens, types, mask), "original")
    assert_same(found.values, expected.values)
    assert found.labels == {"example": ("0", "1", "2", "3")}
    assert found.words is None
    one = pseudo_log_likelihood(bert, bert.to_tokens(TEXTS[0])[0][0], "original")
    assert one.axes == ()
    assert_same(one.values, expected.values[0])


def test_token_types_of_tokens_count(bert):
    batch = tiny_batch()
    tokens, mask = batch["tokens"].clamp(min=5), batch["mask"]  # no special ones
    found = pseudo_log_likelihood(bert, bert.prepare(tokens, batch["types"], mask), "original")
    other = pseudo_log_likelihood(bert, bert.prepare(tokens, None, mask), "original")
    assert [len(values) for values in found.log_probs] == mask.sum(1).tolist()
    assert all(changed_along(0, found.values, other.values))


def test_special_tokens_are_not_scored_and_unknown_ones_are(bert):
    found = pseudo_log_likelihood(bert, "the [MASK] was 世 [SEP] new")
    assert found.tokens == (("the", "was", "[UNK]", "new"),)
    assert found.positions == ((1, 3, 4, 6),)
    bare = pseudo_log_likelihood(bert, torch.tensor([2, 88, 4, 93, 3]), "original")
    assert bare.tokens == (("the", "was"),)


def test_an_unknown_token_that_is_also_the_separator_is_not_scored(bert_twin, tokenizer):
    odd = copy.deepcopy(tokenizer)
    odd.unk_token = odd.sep_token
    model = HookedEncoder.from_pretrained(hf_model=bert_twin[0], tokenizer=odd, device="cpu")
    assert pseudo_log_likelihood(model, "the nurse").tokens == (("the", "nurse"),)


def test_half_precision_is_summed_in_float32(bert_twin):
    hf_model, model = bert_twin
    half = HookedEncoder.from_pretrained(hf_model=hf_model, tokenizer=model.tokenizer, device="cpu", dtype=torch.bfloat16)
    found, expected = (pseudo_log_likelihood(which, TEXTS) for which in (half, model))
    assert found.values.dtype == torch.float32
    assert_parity(found.values / expected.values, torch.ones(len(expected.values)), tolerance=0.05)


def test_copies_that_are_equal_run_once(trained):
    rows = []
    with trained.hooks([("hook_full_embed", lambda resid, hook: rows.append(len(resid)))]):
        found = minimal_pairs(trained, [("the cats run", "the cats runs"), ("He ran", "he ran")], "original", batch_size=4)
    assert rows == [4, 3]  # two texts of three tokens share the copy without the last one, and one text of two came twice
    assert found.values[1] == 0


def test_hooks_act_on_every_copy(bert):
    def silence(z, hook):
        z[:] = 0

    plain = pseudo_log_likelihood(bert, TEXTS)
    with bert.hooks([("blocks.1.attn.hook_z", silence)]):
        changed = pseudo_log_likelihood(bert, TEXTS)
    assert all((a - b).abs().min() > 0 for a, b in zip(plain.log_probs, changed.log_probs, strict=True))


# The model


def test_the_head_need_not_be_that_of_the_task(bert):
    expected = pseudo_log_likelihood(bert, TEXTS).values
    bert.task = "next_sentence"
    assert torch.equal(pseudo_log_likelihood(bert, TEXTS).values, expected)
    assert bert.task == "next_sentence"
    with pytest.raises(InputError):
        pseudo_log_likelihood(bert, "")
    assert bert.task == "next_sentence"


def test_a_model_without_the_head_is_refused(tokenizer):
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("BertForQuestionAnswering"), tokenizer=tokenizer, device="cpu")
    with pytest.raises(TaskError, match="no 'masked_lm' head; its heads: question_answering"):
        pseudo_log_likelihood(model, "the nurse")


def test_a_model_in_training_mode_is_refused(bert):
    bert.train()
    try:
        with pytest.raises(AnalysisError, match="training mode"):
            pseudo_log_likelihood(bert, "the nurse")
    finally:
        bert.eval()


def test_tokenizers_that_are_missing_or_have_no_mask_token(bert_twin, tokenizer):
    hf_model, _ = bert_twin
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    with pytest.raises(TokenizerMissingError, match=r"needs the mask token of a tokenizer.*set model.tokenizer"):
        pseudo_log_likelihood(model, torch.tensor([2, 88, 3]), "original")
    model.tokenizer = copy.deepcopy(tokenizer)
    model.tokenizer.mask_token = None
    with pytest.raises(InputError, match="has no mask token, so no token can be masked"):
        pseudo_log_likelihood(model, "the nurse")


class SlowTokenizer(PreTrainedTokenizer):
    """One token a letter, and no offsets."""

    vocab_files_names: ClassVar = {}

    @property
    def vocab_size(self):
        return 32

    def get_vocab(self):
        return {letter: index for index, letter in enumerate(string.ascii_lowercase)}

    def _tokenize(self, text, **kwargs):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.get_vocab().get(token, 0)

    def _convert_id_to_token(self, index):
        return string.ascii_lowercase[index]


UNKNOWN_WORDS = {
    "tokens": lambda model: model.to_tokens("the nurse")[0],
    "a mask of one's own": lambda model: model.prepare("the nurse was", None, torch.tensor([[1, 1, 0, 1, 1]])),
}


@pytest.mark.parametrize("inputs", UNKNOWN_WORDS.values(), ids=UNKNOWN_WORDS)
def test_within_word_needs_words(bert, inputs):
    with pytest.raises(InputError, match=r"within_word needs to know which tokens make a word.*or take method='original'"):
        pseudo_log_likelihood(bert, inputs(bert))
    found = pseudo_log_likelihood(bert, inputs(bert), "original")
    assert found.words is None
    with pytest.raises(InputError, match="take per_token"):
        _ = found.per_word


@pytest.mark.parametrize("slow", [True, False])
def test_within_word_needs_a_tokenizer_that_knows_words(slow):
    tokenizer = SlowTokenizer(pad_token="<pad>", mask_token="<mask>", unk_token="<unk>") if slow else byte_level(splits=False)
    hf_model = tiny_hf("RobertaForMaskedLM", vocab_size=len(tokenizer) + 20)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    with pytest.raises(InputError, match=r"fast tokenizer \(a tokenizer.json\) that splits them at spaces"):
        pseudo_log_likelihood(model, ["the nurse", "one"])
    assert pseudo_log_likelihood(model, ["the nurse", "one"], "original").words is None


# The input


def test_what_does_not_fit_is_refused_before_anything_runs(bert, unchecked):
    def fail(resid, hook):
        raise AssertionError("it ran")

    with bert.hooks([("hook_full_embed", fail)]):
        for inputs, options, message in (
            (["the", "no " * 60], {}, "text 1 has 62 tokens, the model takes 37"),
            (["the", ""], {}, "text 1 has no token to score: it is empty"),
            ("[MASK] [SEP]", {}, "text 0 has no token to score"),
            ([], {}, "list of texts is empty"),
            (3, {}, "input is an int"),
            ("the", {"method": "words"}, "method='words' is unknown; it is 'within_word' or 'original'"),
            ("the", {"batch_size": 0}, "batch_size=0"),
        ):
            with pytest.raises(InputError, match=message):
                pseudo_log_likelihood(bert, inputs, **options)


def test_the_prompt_of_a_model_is_scored_with_the_text_once(bert):
    plain = pseudo_log_likelihood(bert, "no doctor walked")
    bert.prompt = "no "
    try:
        prompted = pseudo_log_likelihood(bert, "doctor walked")
    finally:
        bert.prompt = None
    assert prompted.words == plain.words
    assert torch.equal(prompted.values, plain.values)


# The result


def test_averages(trained):
    found = pseudo_log_likelihood(trained, ["the souvenir", "They were there, too."])
    counts, words = torch.tensor([4.0, 6.0]), torch.tensor([2.0, 6.0])
    assert_close(found.per_token, found.values / counts)
    assert_close(found.per_word, found.values / words)
    assert found.perplexity == pytest.approx(math.exp(-found.values.sum().item() / 10))
    assert found.mean().mean.item() == pytest.approx(found.values.mean().item())
    one = pseudo_log_likelihood(trained, "the souvenir")
    assert one.per_word.shape == ()
    assert one.per_word.item() == pytest.approx(found.per_word[0].item(), rel=1e-5)


def test_tables_show_texts_or_the_tokens_of_one(trained):
    many = pseudo_log_likelihood(trained, ["They [MASK] there.", "We were."])
    assert str(many).count("\n") == 6
    assert "They [MASK] there." in str(many)
    assert many.table(1).row_count == 1
    assert many.table(1).caption == "the first 1 of 2 texts"
    one = pseudo_log_likelihood(trained, "We were souvenirs.")
    for token, value in zip(one.tokens[0], one.log_probs[0].tolist(), strict=True):
        assert any(token in line and f"{value:.4f}" in line for line in str(one).splitlines())
    assert f"sum {one.values.item():.4f}" in str(one)
    with pytest.raises(InputError, match="k=0"):
        many.table(0)


def test_json_holds_every_token(trained):
    found = pseudo_log_likelihood(trained, ["We were.", "They"])
    stored = json.loads(found.to_json())
    assert stored["tokens"] == [["we", "were", "."], ["they"]]
    assert stored["words"] == [[0, 1, 2], [0]]
    assert [sum(values) for values in stored["log_probs"]] == pytest.approx(stored["values"], rel=1e-6)
