"""The house itself: layers, what importing costs in modules, public names, and documents that must stay true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import encoderlens
from tests.hooks import assert_documented
from tests.speech import ALL_LAYOUTS, LAYOUTS, tiny_speech

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / "tools"


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)


def test_imports_point_down() -> None:
    result = run_python(str(TOOLS / "check_imports.py"))
    assert result.returncode == 0, result.stdout
    assert "no import upwards, no cycle" in result.stdout


def test_the_import_check_finds_an_import_that_points_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    import check_imports

    (tmp_path / "names.py").write_text("def f():\n    from encoderlens.encoder import Encoder\n")
    (tmp_path / "encoder.py").write_text("import encoderlens.names\n")
    (tmp_path / "attic.py").write_text("")
    monkeypatch.setattr(check_imports, "PACKAGE", tmp_path)
    found = "\n".join(check_imports.problems())
    assert "names (layer 0) imports encoder (layer 4)" in found
    assert "attic stands in no layer" in found
    assert "cycle" in found


def test_importing_loads_neither_transformers_nor_matplotlib() -> None:
    heavy = ("transformers", "matplotlib", "huggingface_hub", "typer", "rich", "beartype")
    code = f"import sys, encoderlens; print([name for name in {heavy} if name in sys.modules])"
    assert run_python("-c", code).stdout.strip() == "[]"


def test_public_names() -> None:
    names = {name for name in vars(encoderlens) if not name.startswith("_")}
    exported = {
        "ActivationCache", "BertNextSentencePrediction", "EncoderConfig", "FactoredMatrix", "HookPoint",
        "HookedAudioEncoder", "HookedEncoder", "HookedRootModule", "HookedTransformerConfig", "errors", "hook_points",
        "utilities", "utils",
    }  # fmt: skip
    assert exported <= names
    modules = {path.stem for path in Path(encoderlens.__file__).parent.iterdir()}
    checker = {"jaxtyping"}  # what the shape checks of the test run leave in the module
    assert names - exported - checker <= modules, "a name that is neither exported on purpose nor a module"


def test_the_errors_docstring_draws_the_whole_tree() -> None:
    drawn = str(encoderlens.errors.__doc__)
    classes = [value for value in vars(encoderlens.errors).values() if isinstance(value, type)]
    assert len(classes) > 10
    for value in classes:
        builtin = [base.__name__ for base in value.__bases__ if not issubclass(base, encoderlens.errors.EncoderLensError)]
        shown = f"{value.__name__} ({builtin[0]})" if builtin and value.__name__ != "EncoderLensError" else value.__name__
        assert shown in drawn


def test_the_table_of_models_is_true() -> None:
    assert run_python(str(TOOLS / "supported_models.py"), "--check").returncode == 0


def test_the_examples_of_the_additive_page_run_and_add_up(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "additive.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 3
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(examples), "additive.md", "exec"), {})
    printed = capsys.readouterr().out
    gaps = [float(gap) for gap in re.findall(r"^tensor\((\d[^,)]*)[,)]", printed, re.MULTILINE)]
    assert len(gaps) == 2
    assert max(gaps) < 1e-4
    assert (tmp_path / "run.safetensors").exists()


def test_the_examples_of_the_scoring_page_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 3
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(examples), "scoring.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "##uven" in printed
    assert "accuracy 66.7% (2 of 3)" in printed
    assert "door" in printed


def test_the_example_of_the_page_on_sentence_encoders_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sentence-encoders.md").read_text("utf-8"), re.DOTALL)
    assert len(examples) == 2
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(examples), "sentence-encoders.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("torch.Size([3, 128])")
    errors = re.findall(r"completeness error (\S+)", printed)
    assert len(errors) == 2
    assert max(map(float, errors)) < 1e-5


@pytest.mark.parametrize("hf_class", ["HubertForCTC", "HubertForSequenceClassification", "Wav2Vec2ForCTC"])
def test_every_hook_point_of_speech_encoders_is_documented(hf_class: str) -> None:
    for layout in LAYOUTS if hf_class.startswith("Wav2Vec2") else ALL_LAYOUTS:
        assert_documented(tiny_speech(hf_class, layout))


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_links_between_documents_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert all((path.parent / link).exists() for link in links), links
