"""The command line, as a person meets it: real runs, real files, one readable line for an error."""

import io
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file
from transformers import EsmTokenizer
from typer.testing import CliRunner

from encoderlens import ActivationCache, HookedAudioEncoder, HookedEncoder, progress
from encoderlens.analysis import minimal_pairs, read_minimal_pairs
from encoderlens.cli import app, main
from tests.checkpoints import save_tiny
from tests.families.test_esm import PROTEIN, VOCABULARY
from tests.parity import assert_close, assert_parity
from tests.sentences import TEXTS, write_encoder
from tests.speech import CLUBS, DISPOSED, TRANSCRIPTS, processor, speech
from tests.tiny import tiny_hf

TINY_BERT = "encoderlens/tiny-bert"
TEXT = "The capital of france is [MASK]."
runner = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> str:
    """A sequence classifier with its tokenizer."""
    path = tmp_path_factory.mktemp("classifier")
    tiny_hf("BertForSequenceClassification").save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A speech recogniser with its processor, a frame every 320 samples."""
    path = tmp_path_factory.mktemp("ctc")
    tiny_hf("HubertForCTC", conv_kernel=(10, 8, 4), conv_stride=(8, 8, 5)).save_pretrained(path)
    processor(masks=False).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def sentence_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sentence encoder with a prompt."""
    path = tmp_path_factory.mktemp("sentence-encoder")
    write_encoder(path, prompts={"query": "is: ", "passage": "passage: "}, default_prompt_name="query")
    return str(path)


def invoke(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The error line of a command that fails with exit code 1."""
    monkeypatch.setattr(sys, "argv", ["encoderlens", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert printed.err.count("\n") == 1
    return printed.err


def test_demo_opens_up_the_embedded_model() -> None:
    shown = invoke("demo")
    assert "door" in shown
    for part in (
        "What the model says",
        "40.9%",
        "outputs by their probability",
        "after each layer",
        "3_mid",
        "final_post",
        "MLPs and biases decide 'door'",
        "Where its heads look",
        "Try next",
    ):
        assert part in shown
    error = float(shown.split("completeness error ")[1].split()[0])
    assert error < 1e-5


def test_demo_with_a_text_of_ones_own() -> None:
    assert TEXT in invoke("demo", TINY_BERT, TEXT)
    assert TEXT in invoke("demo", TEXT, "--model", TINY_BERT)


def test_demo_says_what_is_missing(
    sentence_folder: str, ctc_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, message in (
        ((TINY_BERT, "no mask"), "put [MASK] where a word is wanted"),
        ((TINY_BERT, "the <mask> sat"), "mask token is [MASK], not <mask>: write [MASK]"),
        (("the [MASK] sat",), "the model comes first, then the text"),
        ((sentence_folder, "one text"), "compares two texts: give the other by --pair"),
        ((ctc_folder,), "reads audio: give a WAV or FLAC file"),
        ((ctc_folder, str(CLUBS), "--pair", "b"), "--pair goes with texts"),
    ):
        assert message in fails(capsys, monkeypatch, "demo", *arguments)
    assert runner.invoke(app, ["demo", TINY_BERT, "a", "b"]).exit_code == 2


@pytest.fixture(scope="module")
def demo_folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, folder: str, sentence_folder: str) -> dict[str, str]:
    """A model of every kind that reads text, by what its demo must show."""
    folders = {"LABEL_1": folder, "How similar it finds them": sentence_folder}
    kinds = {
        "'LABEL_0'": ("BertForSequenceClassification", {"num_labels": 1}),
        "1 my": ("BertForTokenClassification", {}),
        "What the model answers": ("BertForQuestionAnswering", {}),
        "NOT sequential": ("BertForNextSentencePrediction", {}),
        "'replaced'": ("ElectraForPreTraining", {}),
        "How much each layer changes": ("BertModel", {}),
    }
    for shown, (hf_class, overrides) in kinds.items():
        path = tmp_path_factory.mktemp("demo")
        tiny_hf(hf_class, **overrides).save_pretrained(path)
        tokenizer.save_pretrained(path)
        folders[shown] = str(path)
    proteins = tmp_path_factory.mktemp("proteins")
    save_tiny("EsmForMaskedLM", proteins, **PROTEIN)
    (proteins / "vocab.txt").write_text("\n".join(VOCABULARY))
    EsmTokenizer(str(proteins / "vocab.txt")).save_pretrained(proteins)
    return folders | {"21 <mask>": str(proteins)}


def test_demo_of_every_kind_of_model_gives_commands_that_work(
    demo_folders: dict[str, str], ctc_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [(expected, ("--model", path)) for expected, path in demo_folders.items()]
    for expected, given in [*arguments, ("surest", (ctc_folder, str(CLUBS))), ("door", ())]:
        shown = invoke("demo", *given)
        assert expected in shown or expected == "surest"
        hints = [line.strip() for line in shown.splitlines() if line.startswith("    encoderlens ")]
        assert len(hints) >= 2
        for hint in hints if expected == "door" else hints[:1]:
            assert invoke(*shlex.split(hint)[1:])
        for error in re.findall(r"completeness error (\S+)", shown):
            assert float(error) < 1e-5


def test_a_pair_in_a_demo(demo_folders: dict[str, str]) -> None:
    shown = invoke("demo", demo_folders["What the model answers"], "Who is it?", "--pair", "it is the doctor")
    assert "it is the doctor" in shown
    assert "start" in shown


def test_run_shows_probabilities_that_are_those_of_the_logits(demo_folders: dict[str, str], folder: str) -> None:
    report = json.loads(invoke("run", TINY_BERT, TEXT, "--json"))
    (mask,) = report["inputs"][0]["probabilities"]
    model = HookedEncoder.from_pretrained(TINY_BERT, device="cpu")
    at = int(mask["at"].split()[0])
    expected = model(TEXT, return_type="logits")[0, at].softmax(-1).topk(5)
    assert [entry["probability"] for entry in mask["outputs"]] == pytest.approx(expected.values.tolist(), rel=1e-4)
    assert [mask["outputs"][0]["output"]] == report["inputs"][0]["prediction"]
    (classes,) = json.loads(invoke("run", folder, "the doctor", "--json"))["inputs"][0]["probabilities"]
    assert classes["at"] is None
    assert sum(entry["probability"] for entry in classes["outputs"]) == pytest.approx(1)
    regression = json.loads(invoke("run", demo_folders["'LABEL_0'"], "a", "--json"))
    assert "probabilities" not in regression["inputs"][0]


def test_run_attributes_by_what_a_model_can_do(
    demo_folders: dict[str, str], sentence_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = (demo_folders["What the model answers"], "Who is it?", "--pair", "it is the doctor")
    report = json.loads(invoke("run", *question, "--attribute", "end", "--json"))
    (entry,) = report["inputs"]
    start, end = entry["probabilities"]
    assert entry["attribution"]["tokens"] == [end["at"]]
    model = HookedEncoder.from_pretrained(question[0], device="cpu")
    logits = model((question[1], question[3]), return_type="logits")[0]
    assert sum(entry["attribution"]["values"]) == pytest.approx(logits[int(end["at"].split()[0]), 1].item(), rel=1e-3)
    assert int(start["at"].split()[0]) <= int(end["at"].split()[0])
    tagger = demo_folders["1 my"]
    (entry,) = json.loads(invoke("run", tagger, "the doctor", "--attribute", "LABEL_2", "--json"))["inputs"]
    logits = HookedEncoder.from_pretrained(tagger, device="cpu")("the doctor", return_type="logits")[0]
    assert entry["attribution"]["positions"] == [1 + int(logits[1:-1, 2].argmax())]
    assert [choice["at"] for choice in entry["probabilities"]] == ["1 the", "2 doctor"]
    pair = ("run", sentence_folder, "no", "--pair", "yes", "--attribute")
    first, second = json.loads(invoke(*pair, "cosine", "--json"))["inputs"]
    assert "attribution" not in first
    assert sum(second["attribution"]["values"]) == pytest.approx(second["cosine"], rel=1e-3)
    assert second["token_pairs"]["cosine"] == pytest.approx(second["cosine"], rel=1e-3)
    assert "it is 'cosine'; did you mean 'cosine'" in fails(capsys, monkeypatch, *pair, "cosin")
    assert "by --pair" in fails(capsys, monkeypatch, "run", sentence_folder, "no", "--attribute", "cosine")


def test_hooks_by_short_names_and_globs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    patterns = ("--hooks", "pattern", "--hooks", "q0", "--hooks", "blocks.[12].hook_resid_post", "--hooks", "*.hook_result")
    rows = json.loads(invoke("run", TINY_BERT, TEXT, *patterns, "--json"))["activations"]
    names = [row["name"] for row in rows]
    assert [name for name in names if "pattern" in name] == [f"blocks.{layer}.attn.hook_pattern" for layer in range(4)]
    assert [name for name in names if "hook_q" in name] == ["blocks.0.attn.hook_q"]
    assert [name for name in names if "resid" in name] == ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
    assert sum("result" in name for name in names) == 4
    everything = json.loads(invoke("run", TINY_BERT, TEXT, "--hooks", "*", "--json"))["activations"]
    assert not [row for row in everything if "hook_result" in row["name"]], "on demand"
    for pattern, message in (("pattrn", "did you mean 'pattern'"), ("foo.*", "no hook point matches"), ("q9", "blocks.9")):
        assert message in fails(capsys, monkeypatch, "run", TINY_BERT, TEXT, "--hooks", pattern)


def test_align_finds_words_and_normalises_on_request(
    ctc_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "He was not an ill-disposed, young man!"
    report = json.loads(invoke("align", ctc_folder, str(DISPOSED), said, "--normalise", "--json"))
    model = HookedAudioEncoder.from_pretrained(ctc_folder, device="cpu")
    expected = model.align(str(DISPOSED), TRANSCRIPTS[DISPOSED])
    assert [word["text"] for word in report["words"]] == TRANSCRIPTS[DISPOSED].split()
    assert [word["end"] for word in report["words"]] == pytest.approx([word.end for word in expected.words])
    assert "DISPOSED" in invoke("align", ctc_folder, str(DISPOSED), TRANSCRIPTS[DISPOSED])
    for arguments, message in (
        ((ctc_folder, str(DISPOSED), said), "which the tokenizer lacks"),
        ((TINY_BERT, str(DISPOSED), said), "reads text"),
    ):
        assert message in fails(capsys, monkeypatch, "align", *arguments)


def test_score_leaves_out_lines_that_are_too_long_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "sentences.txt"
    path.write_text("The boys are here.\n\n" + "no " * 600 + "\nThe souvenir.\n")
    result = runner.invoke(app, ["score", TINY_BERT, str(path), "--json"])
    assert result.exit_code == 3
    assert f"{path}, line 3 is not scored: it has 602 tokens" in result.stderr
    report = json.loads(result.stdout)
    assert report["lines"] == [1, 4]
    assert [entry["line"] for entry in report["skipped"]] == [3]
    assert len(report["values"]) == 2


def test_score_masks_tokens_one_by_one_where_words_are_unknown(
    demo_folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "proteins.txt"
    path.write_text("MQIFVKTL\nGIVEQCC\n")
    proteins = demo_folders["21 <mask>"]
    assert "words are not known" in invoke("score", proteins, str(path))
    report = json.loads(invoke("score", proteins, str(path), "--json"))
    assert report["method"] == "original"
    assert "words are not known" in report["note"]
    asked = ("score", proteins, str(path), "--method", "within_word")
    assert "within_word needs to know" in fails(capsys, monkeypatch, *asked)


def test_bars_appear_in_terminals_after_a_while_unless_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    bars = Progress(console=Console(file=drawn, force_terminal=True, width=80), transient=True)
    monkeypatch.setattr(progress, "_terminal_progress", lambda: bars)
    monkeypatch.setattr(progress, "SECONDS", 0.01)

    def slow() -> list[int]:
        return [number for number in progress.tracked(range(3), "counting", 3) if not time.sleep(0.05)]

    with progress.progress_bars():
        assert slow() == [0, 1, 2]
    assert drawn.getvalue() == "", "no bars in a pipe"
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    with progress.progress_bars(enabled=False):
        slow()
    assert drawn.getvalue() == ""

    def interrupted() -> None:
        with progress.progress_bars(), progress.step("loading"):
            slow()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "counting" in drawn.getvalue()
    assert "loading" in drawn.getvalue()
    assert "\x1b[2K" in drawn.getvalue()[-20:], "the bar is gone"
    assert slow() == [0, 1, 2]


def test_info_lists_architecture_and_hooks() -> None:
    shown = invoke("info", TINY_BERT)
    assert "BertForMaskedLM" in shown
    facts = json.loads(invoke("info", TINY_BERT, "--json"))
    model = HookedEncoder.from_pretrained(TINY_BERT, device="cpu")
    assert facts["architecture"]["parameters"] == f"{model.cfg.n_params:,}"
    shapes = {point["name"]: point["shape"] for point in facts["hook_points"]}
    assert shapes["blocks.{l}.attn.hook_q"] == f"batch pos head={model.cfg.n_heads} d_head={model.cfg.d_head}"
    on_demand = {point["name"]: point["on_demand"] for point in facts["hook_points"]}
    assert on_demand["blocks.{l}.attn.hook_result"] == "use_attn_result"
    assert on_demand["blocks.{l}.attn.hook_z"] is None


def test_run_predicts_and_saves_activations(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    hooks = ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_result"]
    arguments = ["run", TINY_BERT, TEXT, "--hooks", hooks[0], "--hooks", hooks[1], "--save", str(out), "--json"]
    report = json.loads(invoke(*arguments))
    model = HookedEncoder.from_pretrained(TINY_BERT, device="cpu")
    assert report["inputs"][0]["prediction"] == model([TEXT], "predictions")[0]
    assert report["inputs"][0]["tokens"] == model.to_str_tokens(TEXT)
    saved = load_file(out)
    _, cache = model.run_with_cache([TEXT], names_filter=hooks)
    assert set(saved) == {*hooks, "tokens"}
    for name in hooks:
        assert_close(saved[name], cache[name])
    assert [row["name"] for row in report["activations"]] == hooks
    assert list(ActivationCache.load(out, model)) == hooks


def test_run_with_the_lens_and_attributions() -> None:
    arguments = ("run", TINY_BERT, TEXT, "A [MASK].", "--lens", "--attribute", "door")
    shown = invoke(*arguments)
    assert shown.count("Direct logit attribution: door") == shown.count("Logit lens") == 2
    report = json.loads(invoke(*arguments, "--json"))
    model = HookedEncoder.from_pretrained(TINY_BERT, device="cpu")
    for entry in report["inputs"]:
        lens, attribution = entry["lens"], entry["attribution"]
        best = lens["ids"][-1][0][0]
        assert lens["names"][str(best)] == entry["prediction"][0]
        at = attribution["positions"][0]
        logit = model(entry["text"])[0, at, model.tokenizer.convert_tokens_to_ids("door")].item()
        assert sum(attribution["values"]) == pytest.approx(logit, rel=1e-4)
        assert attribution["error"] < 1e-5


def test_run_attributes_a_label_and_looks_where_it_is_told(folder: str) -> None:
    report = json.loads(invoke("run", folder, "the doctor", "--attribute", "LABEL_1", "--lens", "--json"))
    assert report["inputs"][0]["attribution"]["target"] == ["LABEL_1"]
    assert report["inputs"][0]["lens"]["axes"] == ["stream", "rank"]
    report = json.loads(invoke("run", TINY_BERT, "no mask", "--attribute", "mask", "--position", "2", "--json"))
    assert report["inputs"][0]["attribution"]["positions"] == [2]


def test_run_on_a_batch_in_words() -> None:
    shown = invoke("run", TINY_BERT, TEXT, "A [MASK].", "--hooks", "hook_full_embed")
    assert shown.count("prediction") == 2
    assert "hook_full_embed" in shown


def test_json_holds_only_numbers(folder: str) -> None:
    arguments = ("run", folder, "a b c", "a", "--hooks", "blocks.0.attn.hook_attn_scores", "--json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    report = json.loads(invoke(*arguments), parse_constant=refuse)
    assert report["activations"][0]["std"] > 0


def test_a_broken_tokenizer_is_one_line(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in Path(folder).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{")
    said = fails(capsys, monkeypatch, "run", str(tmp_path), "a")
    assert "no tokenizer files (tokenizer.json, vocab.txt, " in said
    assert "that could be read (the log says why" in said


def test_run_without_a_mask_says_why_there_is_no_prediction() -> None:
    report = json.loads(invoke("run", TINY_BERT, "no mask here", "--json"))
    assert "no mask token" in report["note"]
    assert "prediction" not in report["inputs"][0]


def test_run_on_a_classifier_and_on_a_pair(folder: str) -> None:
    report = json.loads(invoke("run", folder, "the doctor", "--pair", "walked", "--json"))
    assert report["task"] == "sequence_classification"
    assert report["inputs"][0]["prediction"].startswith("LABEL_")
    assert report["inputs"][0]["text"] == ["the doctor", "walked"]


def test_run_on_audio_files_gives_each_what_it_would_get_alone(ctc_folder: str, tmp_path: Path) -> None:
    out, hook = tmp_path / "out.safetensors", "blocks.1.attn.hook_pattern"
    arguments = ("run", ctc_folder, str(DISPOSED), str(CLUBS), "--hooks", hook, "--save", str(out))
    report = json.loads(invoke(*arguments, "--lens", "--attribute", "A", "--json"))
    model = HookedAudioEncoder.from_pretrained(ctc_folder, device="cpu")
    for entry, path in zip(report["inputs"], (DISPOSED, CLUBS), strict=True):
        wave = speech(path)
        assert entry["seconds"] == round(len(wave) / 16000, 3)
        assert entry["frames"] == model.frame_lengths(len(wave)).item()
        assert entry["prediction"] == model(wave, return_type="predictions")
        frame = entry["attribution"]["positions"][0]
        assert entry["lens"]["labels"]["pos"] == [f"{frame} {model.frame_times(frame + 1)[-1]:.4f}s"]
        logits = model(wave, return_type="logits")[0]
        assert sum(entry["attribution"]["values"]) == pytest.approx(logits[frame, 5 + 2].item(), rel=1e-3)
        assert logits.softmax(-1)[:, 1:].max().item() == pytest.approx(logits.softmax(-1)[frame, 1:].max().item())
    cache = ActivationCache.load(out, model)
    assert list(cache) == [hook]
    assert cache.frame_times[0] == 258 / 2 / 16000
    alone = model.run_with_cache(speech(CLUBS), names_filter=hook)[1][hook]
    frames = alone.shape[-1]
    assert_parity(cache[hook][1:, :, :frames, :frames], alone)
    assert invoke(*arguments).count("frames") == 2


def test_run_resamples_and_looks_at_the_frame_that_it_is_told(ctc_folder: str, tmp_path: Path) -> None:
    path = tmp_path / "stereo.flac"
    wave = soxr.resample(speech(CLUBS), 16000, 22050)
    soundfile.write(path, np.stack([wave, wave], 1), 22050)
    shown = invoke("run", ctc_folder, "--audio", str(path), "--lens", "--position", "3")
    assert "3 0.0681s" in shown
    assert "1.095 s, 54 frames" in shown


def test_demo_opens_up_a_clip(ctc_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = invoke("demo", ctc_folder, str(CLUBS))
    for part in ("1.10 s, 54 frames", "each layer changes", "What it predicts", "decide", "heads look", "encoderlens align"):
        assert part in shown
    assert float(shown.split("completeness error ")[1].split()[0]) < 1e-5
    assert "there is no audio file" in fails(capsys, monkeypatch, "demo", ctc_folder, "none.wav")


def test_demo_of_a_model_without_heads(tmp_path: Path) -> None:
    tiny_hf("Wav2Vec2Model", do_stable_layer_norm=True).save_pretrained(tmp_path)
    shown = invoke("demo", str(tmp_path), str(CLUBS))
    assert "heads look" in shown
    assert "What it predicts" not in shown


def test_info_of_a_speech_model(ctc_folder: str) -> None:
    facts = json.loads(invoke("info", ctc_folder, "--json"))
    assert facts["architecture"]["front end"] == "3 convolutions, a frame every 320 samples"
    assert facts["architecture"]["d_vocab"] == 32
    assert "ctc_head.hook_out" in [point["name"] for point in facts["hook_points"]]


def test_audio_errors_are_one_line(
    ctc_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short, text = tmp_path / "short.wav", tmp_path / "text.wav"
    soundfile.write(short, np.zeros(100), 16000)
    text.write_text("no audio")
    for arguments, message in (
        ((ctc_folder, "a"), "there is no audio file"),
        ((TINY_BERT, "--audio", str(CLUBS)), "reads text: give texts in place of --audio"),
        ((ctc_folder, "--audio", str(tmp_path / "none.wav")), "there is no audio file"),
        ((ctc_folder, "--audio", str(text)), "cannot be read as audio"),
        ((ctc_folder, "--audio", str(short)), "short.wav: clip 0 has 100 samples at 16000 Hz; one frame needs 258"),
        ((ctc_folder, "--audio", str(CLUBS), "--pair", "b"), "--pair goes with texts"),
        ((ctc_folder, "--audio", str(CLUBS), "--attribute", "a"), "no token for the target 'a'"),
        ((ctc_folder, "--audio", str(CLUBS), "--lens", "--position", "99"), "positions run from 0 to 53"),
    ):
        assert message in fails(capsys, monkeypatch, "run", *arguments)


def test_score_minimal_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("The boys are here.\tThe boys is here.\nThe boys are\tThe boys [are\n")
    shown = invoke("score", TINY_BERT, str(path))
    assert "The boys [are" in shown
    assert "(within_word)" in shown
    assert "2 of 2" in shown
    report = json.loads(invoke("score", TINY_BERT, str(path), "--method", "original", "--batch-size", "3", "--json"))
    model = HookedEncoder.from_pretrained(TINY_BERT, device="cpu")
    found = minimal_pairs(model, read_minimal_pairs(path), "original")
    assert report["method"] == "original"
    assert report["model"] == TINY_BERT
    assert report["values"] == pytest.approx(found.values.tolist(), rel=1e-4)
    assert report["accuracy"]["mean"] == 1


def test_score_sentences(tmp_path: Path) -> None:
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(["The boys are here."] * 11 + ["The souvenir."]))
    assert invoke("score", TINY_BERT, str(path)).count("boys") == 11
    report = json.loads(invoke("score", TINY_BERT, str(path), "--json"))
    assert report["tokens"][-1] == ["the", "so", "##uven", "##ir", "."]
    assert [sum(values) for values in report["log_probs"]] == pytest.approx(report["values"], rel=1e-5)


def test_score_says_what_is_wrong_with_a_file(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, long = tmp_path / "pairs.tsv", tmp_path / "long.txt"
    pairs.write_text("good\tbad\na\tb\nonly one\n")
    long.write_text("\n" + "no " * 600)
    for arguments, message in (
        ((TINY_BERT, str(pairs)), f"{pairs}, line 3: 1 columns, too few"),
        ((TINY_BERT, str(long)), f"{long}: no line can be scored; line 2: it has 602 tokens, the model takes 512"),
        ((TINY_BERT, str(tmp_path / "none.tsv")), "there is no file"),
        (
            (TINY_BERT, str(tmp_path / "pairs.xlsx")),
            "ends in none of .jsonl, .tsv, .csv, from which minimal pairs are read; sentences are read from .txt",
        ),
    ):
        assert message in fails(capsys, monkeypatch, "score", *arguments)
    pairs.write_text("a\tb\n")
    assert "no 'masked_lm' head" in fails(capsys, monkeypatch, "score", folder, str(pairs))
    assert runner.invoke(app, ["score", TINY_BERT, str(pairs), "--method", "other"]).exit_code == 2


def test_fill_shows_the_best_tokens(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = invoke("fill", TINY_BERT, "She opened the [MASK].", "A [MASK] [MASK].", "--top-k", "7")
    assert "door" in shown
    assert shown.count("%") == 3 * 7
    report = json.loads(invoke("fill", TINY_BERT, "She opened the [MASK].", "--json"))
    assert report["tokens"][0][0] == "door"
    assert len(report["values"][0]) == 5
    assert "no mask token to predict" in fails(capsys, monkeypatch, "fill", TINY_BERT, "no mask")


def test_run_on_a_sentence_encoder_shows_cosines(
    sentence_folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["run", sentence_folder, *TEXTS[:3]]
    shown = invoke(*arguments)
    assert shown.count("embedding   9 numbers, of length 1\n") == 3
    assert "No prediction" not in shown
    model = HookedEncoder.from_pretrained(sentence_folder, device="cpu")
    vectors = model(TEXTS[:3]).detach()
    cosines = vectors @ vectors.T
    rows = [line for line in shown.splitlines() if "1.000" in line]
    assert [[float(cell) for cell in row.split("│")[2:5]] for row in rows] == [
        [pytest.approx(cosine, abs=6e-4) for cosine in row] for row in cosines.tolist()
    ]
    out = tmp_path / "out.safetensors"
    report = json.loads(invoke(*arguments, "--json", "--hooks", "sentence.pooling.hook_out", "--save", str(out)))
    assert_parity(torch.tensor([entry["embedding"] for entry in report["inputs"]]), vectors)
    assert_parity(torch.tensor(report["cosines"]), cosines)
    assert [row["shape"] for row in report["activations"]] == [[3, 40]]
    assert list(ActivationCache.load(out, model)) == ["sentence.pooling.hook_out"]
    assert "cut to the 12 tokens that the sentence encoder takes: text 2" in caplog.text, "as encode() cuts it"


def test_run_on_a_sentence_encoder_compares_each_text_with_its_pair(sentence_folder: str) -> None:
    arguments = ["run", sentence_folder, TEXTS[0], "no", "--pair", TEXTS[1], "--pair", TEXTS[3]]
    report = json.loads(invoke(*arguments, "--json"))
    order = [TEXTS[0], TEXTS[1], "no", TEXTS[3]]
    assert [entry["text"] for entry in report["inputs"]] == order
    vectors = HookedEncoder.from_pretrained(sentence_folder, device="cpu")(order, "embedding").detach()
    assert_parity(torch.tensor([entry["embedding"] for entry in report["inputs"]]), vectors)
    cosines = [torch.nn.functional.cosine_similarity(vectors[first], vectors[first + 1], dim=0).item() for first in (0, 2)]
    assert ["cosine" in entry for entry in report["inputs"]] == [False, True, False, True]
    assert [entry["cosine"] for entry in report["inputs"][1::2]] == pytest.approx(cosines, abs=1e-5)
    shown = invoke(*arguments)
    assert [float(line.split()[1].rstrip(",")) for line in shown.splitlines() if line.startswith("  cosine ")] == pytest.approx(
        cosines, abs=1e-4
    )


def test_a_half_character_on_the_command_line_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    half = "the \udcff [MASK]"
    for arguments, named in (
        (("run", TINY_BERT, half), "input 0 has half a character"),
        (("run", TINY_BERT, "a", "--pair", half), "the second text of input 0 has half"),
        (("run", TINY_BERT, "the [MASK]", "--attribute", half), "the target has half"),
        (("fill", TINY_BERT, "the [MASK]", half), "input 1 has half"),
        (("demo", TINY_BERT, half), "input 0 has half"),
    ):
        assert named in fails(capsys, monkeypatch, *arguments)


def test_run_on_one_sentence(sentence_folder: str) -> None:
    shown = invoke("run", sentence_folder, "no")
    assert "of length 1" in shown
    assert "Cosines" not in shown


def test_info_of_a_sentence_encoder(sentence_folder: str) -> None:
    shown = invoke("info", sentence_folder)
    assert "embedding  mean pooling, dense, normalize\n" in shown
    assert "prompts  query 'is: ' (default), passage 'passage: '\n" in shown
    points = {point["name"]: point["shape"] for point in json.loads(invoke("info", sentence_folder, "--json"))["hook_points"]}
    assert points["sentence.dense.hook_out"] == "batch d_sentence"
    assert "embedding" not in json.loads(invoke("info", TINY_BERT, "--json"))["architecture"]


def test_attributions_of_a_sentence_encoder_need_a_head(
    sentence_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("run", sentence_folder, "no", "--attribute", "yes")
    assert "it is 'cosine'" in fails(capsys, monkeypatch, *arguments)


def test_models_lists_what_can_be_loaded() -> None:
    facts = json.loads(invoke("models", "--json"))
    assert facts["embedded"] == [TINY_BERT]
    assert "BertForQuestionAnswering" in facts["supported"]["BERT"]
    assert "BertForQuestionAnswering" in invoke("models")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "no/such/folder"), "there is no folder"),
        (("info", "encoderlens/tiny-bart"), "did you mean 'encoderlens/tiny-bert'"),
        (("run", TINY_BERT, "a", "--hooks", "blocks.0.hook_resid_per"), "did you mean 'blocks.0.hook_resid_pre'"),
        (("run", TINY_BERT, "a", "--save", "no/such/out.safetensors"), "does not exist"),
        (("run", TINY_BERT, "a", "--save", "/"), "is a folder"),
        (("run", TINY_BERT, "a", "--save", "/proc/out.safetensors"), "cannot be written to /proc/out.safetensors"),
        (("run", TINY_BERT, "a " * 600), "text 0 has 602 tokens, the model takes 512"),
        (("run", TINY_BERT, "a", "--pair", "b", "--pair", "c"), "1 texts and 2 --pair"),
        (("run", TINY_BERT, "a", "--task", "next_sentence"), "has no 'next_sentence' head"),
        (("run", TINY_BERT, "a [MASK]", "--attribute", "interpretability"), "is no single token"),
        (("run", TINY_BERT, "a", "--attribute", "door"), "'a': sequence 0 has 0 mask tokens, not one"),
        (("run", TINY_BERT, "a", "--position", "1"), "give one of them too"),
        (("run", TINY_BERT, "a", "--lens", "--position", "9"), "positions run from 0 to 2"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert message in fails(capsys, monkeypatch, *arguments)


def test_wrong_usage_exits_with_2() -> None:
    assert runner.invoke(app, ["run"]).exit_code == 2
    assert runner.invoke(app, ["run", TINY_BERT]).exit_code == 2
    assert runner.invoke(app, ["run", TINY_BERT, "a", "--audio", str(CLUBS)]).exit_code == 2


def test_every_command_has_help() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        assert command.callback.__doc__
        assert "--help" in invoke(command.callback.__name__, "--help")


def test_the_installed_command_gives_its_version() -> None:
    command = Path(sys.executable).parent / "encoderlens"
    shown = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("encoderlens 0.")
