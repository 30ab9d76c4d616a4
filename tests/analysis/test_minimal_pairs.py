import json
from math import inf, nan
from pathlib import Path

import pytest
import torch

from encoderlens import HookedEncoder
from encoderlens.analysis import MinimalPairs, minimal_pairs, pseudo_log_likelihood, read_minimal_pairs, read_sentences
from encoderlens.analysis.minimal_pairs import wilson_interval
from encoderlens.errors import InputError, TaskError
from tests.parity import assert_close
from tests.tiny import tiny_hf

# Agreement, case and word order, side by side.
PAIRS = [
    ("The boys are in the house.", "The boys is in the house."),
    ("The man was very old.", "The man were very old."),
    ("She has gone to the store.", "She have gone to the store."),
    ("They were happy to see him.", "They was happy to see him."),
    ("He saw these men at the door.", "He saw this men at the door."),
    ("I read that book last night.", "I read those book last night."),
    ("She gave the letter to him.", "She gave the letter to he."),
    ("He did not know what to do.", "He did not knew what to do."),
    ("They want to go home.", "They want to went home."),
    ("He has been there before.", "He has be there before."),
    ("The old woman sat by the fire.", "The old woman sat by fire the."),
    ("There are many people in the room.", "There is many people in the room."),
]
# Agreement across other nouns, reflexives, polarity, gaps.
HARD = [
    ("The keys to the old cabinet are on the table.", "The keys to the old cabinet is on the table."),
    ("The author that the critics praised was happy.", "The author that the critics praised were happy."),
    ("The boys saw themselves in the mirror.", "The boys saw himself in the mirror."),
    ("The girl hurt herself.", "The girl hurt himself."),
    ("No one has ever seen it.", "Everyone has ever seen it."),
    ("The report about the wars was short.", "The report about the wars were short."),
    ("Who did you see at the party?", "Who did you see him at the party?"),
    ("She knows a doctor who works there.", "She knows a doctor who work there."),
    ("An apple fell from the tree.", "A apple fell from the tree."),
    ("The traveler lost the souvenir.", "The traveler lost souvenir the."),
    ("The teacher near the windows smiles.", "The teacher near the windows smile."),
    ("There was a mistake in the letters.", "There were a mistake in the letters."),
]


@pytest.fixture(scope="module")
def trained():
    return HookedEncoder.from_pretrained("encoderlens/tiny-bert", device="cpu")


@pytest.mark.parametrize("method", ["within_word", "original"])
def test_the_embedded_checkpoint_knows_some_grammar(trained, method):
    found = minimal_pairs(trained, PAIRS, method)
    good, bad = (pseudo_log_likelihood(trained, list(side), method) for side in zip(*PAIRS, strict=True))
    assert_close(found.good, good.values)
    assert_close(found.bad, bad.values)
    assert torch.equal(found.values, found.good - found.bad)
    assert (found.values > 0).sum() == 12  # as docs/scoring.md says
    assert (minimal_pairs(trained, HARD, method).values > 0).sum() == 8


def test_turned_pairs_have_the_other_sign(trained):
    turned = minimal_pairs(trained, [(bad, good) for good, bad in PAIRS[:3]])
    assert_close(turned.values, -minimal_pairs(trained, PAIRS[:3]).values)
    assert turned.accuracy.mean == 0


def scored(*differences: float) -> MinimalPairs:
    values = torch.tensor(differences)
    labels = {"example": tuple(map(str, range(len(differences))))}
    sentences = tuple((f"good {n}", f"bad [{n}]") for n in range(len(differences)))
    return MinimalPairs(values, ("example",), labels, "original", sentences, values - 1, torch.full_like(values, -1))


def test_accuracy_counts_a_tie_as_wrong():
    accuracy = scored(1.0, 0.0, -1.0, inf, nan).accuracy
    assert (accuracy.mean.item(), accuracy.n, accuracy.level) == (0.4, 5, 0.95)


@pytest.mark.parametrize("n", [1, 10, 1000])
@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_wilsons_interval_is_where_the_share_is_just_rejected(n, share):
    successes = int(share * n)
    interval = wilson_interval(successes, n)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    assert interval.low < interval.high
    for end in (interval.low.item(), interval.high.item()):
        if 0 < end < 1:  # the normal test of that share has the statistic 1.96
            assert abs(successes / n - end) / (end * (1 - end) / n) ** 0.5 == pytest.approx(1.959964, rel=1e-5)


def test_wilsons_interval_of_a_textbook():
    interval = wilson_interval(81, 263)
    assert interval.low.item() == pytest.approx(0.2553, abs=1e-4)  # Newcombe 1998, table I
    assert interval.high.item() == pytest.approx(0.3662, abs=1e-4)


def test_table_and_json():
    found = scored(1.5, -0.25, 2.0)
    shown = str(found)
    assert "bad [1]" in shown
    assert "-0.250" in shown
    assert "accuracy 66.7% (2 of 3), 95% interval 20.8% to 93.9%" in shown
    assert found.table(2).row_count == 2
    assert str(found.table(2).caption).endswith("the first 2 of 3 pairs")
    stored = json.loads(found.to_json())
    assert stored["sentences"][0] == ["good 0", "bad [0]"]
    assert stored["accuracy"]["mean"] == pytest.approx(2 / 3)
    assert stored["accuracy"]["n"] == 3


def test_what_does_not_fit_is_refused(bert, unchecked):
    for pairs, message in (
        ([], "one or more"),
        ("a b", "a list of .good, bad."),
        ([("a", "b"), ("a",)], r"pair 1 is \('a',\)"),
        ([("a", 3)], "pair 0 is"),
        ([("a", "b"), ("a", "b " * 60)], "the bad sentences: text 1 has 62 tokens, the model takes 37"),
        ([("", "b")], "the good sentences: text 0 has no token to score"),
        ([("a", "b"), ("a", "b\udcff")], "the bad sentence of pair 1 has half a character"),
    ):
        with pytest.raises(InputError, match=message):
            minimal_pairs(bert, pairs)
    with pytest.raises(InputError, match="method='other' is unknown"):
        minimal_pairs(bert, [("a", "b")], "other")


def test_a_model_without_the_head_is_refused(tokenizer):
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("BertModel"), tokenizer=tokenizer, device="cpu")
    with pytest.raises(TaskError, match="no 'masked_lm' head"):
        minimal_pairs(model, [("a", "b")])


# Files

EXPECTED = [('He said "no".', "He, say no."), ("Bücher sind da.", "Bücher ist da.")]
FILES = {
    "plain.tsv": 'He said "no".\tHe, say no.\n\nBücher sind da.\tBücher ist da.\n',
    "windows.TSV": '\ufeffHe said "no". \t He, say no.\r\nBücher sind da.\tBücher ist da.\r\n',
    "named.tsv": 'id\tBad\tgood\n1\tHe, say no.\tHe said "no".\n2\tBücher ist da.\tBücher sind da.',
    "plain.csv": '"He said ""no"".","He, say no."\nBücher sind da.,Bücher ist da.\n',
    "named.csv": 'sentence_bad,n,sentence_good\n"He, say no.",1,"He said ""no""."\n,,\nBücher ist da.,2,Bücher sind da.\n',
    "blimp.jsonl": '{"sentence_good": "He said \\"no\\".", "sentence_bad": "He, say no.", "UID": "x"}\n\n'
    '{"sentence_bad": "Bücher ist da.", "sentence_good": "Bücher sind da."}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_pairs(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name].encode())
    assert read_minimal_pairs(path) == EXPECTED == read_minimal_pairs(str(path))


def test_a_sentence_keeps_rare_ends_of_lines_within_it(tmp_path: Path) -> None:
    for name, form in (
        ("a.tsv", "a\u2028b\tc"),
        ("a.csv", "a\u2028b,c"),
        ("a.jsonl", '{"sentence_good": "a\u2028b", "sentence_bad": "c"}'),
    ):
        path = tmp_path / name
        path.write_text(form, encoding="utf-8")
        assert read_minimal_pairs(path) == [("a\u2028b", "c")]


@pytest.mark.parametrize(
    ("name", "stored", "message"),
    [
        (
            "a.tsv",
            b"a\tb\nc\td\te\n",
            "a.tsv, line 2: 3 columns; give two, good and bad, or a first line that names sentence_good",
        ),
        ("a.tsv", b"one sentence\n", "line 1: 1 columns"),
        ("a.tsv", b"a\tb\n\n \td\n", "line 3: the good sentence is missing or empty"),
        ("a.tsv", b"id\tgood\tbad\n1\ta\n", "line 2: 2 columns, too few"),
        ("a.csv", b'a,b\n"c"d,e\n', "a.csv, line 2: ',' expected after '\"'"),
        ("a.csv", b'a,b\n"c,d\n', "unexpected end of data"),
        ("a.csv", b"good,bad\n", "a.csv holds no pair"),
        ("a.csv", b"a,b\nc\xff,d\n", "a.csv, line 2: not UTF-8 .byte 0xff."),
        ("a.jsonl", b'{"sentence_good": "a", "sentence_bad": "b"}\n{"sentence_good"\n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'\n{"sentence_good": "a"}\n', "line 2: the bad sentence is missing"),
        ("a.jsonl", b'{"sentence_good": 3, "sentence_bad": "b"}\n', "line 1: the good sentence is missing"),
        ("a.jsonl", rb'{"sentence_good": "a", "sentence_bad": "\ud83d"}', "line 1: the bad sentence has half a character"),
        ("a.jsonl", b'["a", "b"]\n', "line 1: not an object with sentence_good and sentence_bad"),
        ("a.docx", b"a\tb", "ends in none of .jsonl, .tsv, .csv"),
    ],
)
def test_errors_name_the_file_and_the_line(name: str, stored: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(stored)
    with pytest.raises(InputError, match=message) as caught:
        read_minimal_pairs(path)
    assert str(path) in str(caught.value)


def test_files_of_sentences(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(" one\r\n\nzwei Wörter\n".encode())
    assert read_sentences(path) == ["one", "zwei Wörter"]
    path.write_text("\n \n")
    with pytest.raises(InputError, match=r"a.txt holds no sentence"):
        read_sentences(path)
    path.write_bytes(b"one\n\n\xe9\n")
    with pytest.raises(InputError, match=r"a.txt, line 3: not UTF-8"):
        read_sentences(path)
    for read in (read_sentences, lambda path: read_minimal_pairs(path.with_suffix(".tsv"))):
        with pytest.raises(InputError, match="there is no file"):
            read(tmp_path / "none.txt")
