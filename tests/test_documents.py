"""The examples of the README and of the tutorials run, in order, with small models where they name published ones."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
from transformers import AutoTokenizer

from tests.speech import DISPOSED, TRANSCRIPTS, processor
from tests.tiny import TOKENIZER, tiny_hf

ROOT = Path(__file__).parents[1]
SHELL = re.compile(r"```bash\n(.*?)```", re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the examples name: a classifier, a speech recogniser and a recording."""
    classifier = tmp_path / "my-classifier"
    tiny_hf("BertForSequenceClassification").save_pretrained(classifier)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(classifier)
    recogniser = tmp_path / "facebook" / "hubert-large-ls960-ft"
    layout = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    shape = {"conv_kernel": (10, 8, 4), "conv_stride": (8, 8, 5)}
    tiny_hf("HubertForCTC", **layout, **shape).save_pretrained(recogniser)
    processor(masks=True).save_pretrained(recogniser)
    wave, rate = soundfile.read(DISPOSED)
    soundfile.write(tmp_path / "speech.wav", wave, rate)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_examples(page: str, capsys: pytest.CaptureFixture[str]) -> str:
    examples = PYTHON.findall((ROOT / page).read_text(encoding="utf-8"))
    assert examples
    namespace: dict[str, Any] = {}
    capsys.readouterr()
    for example in examples:
        exec(compile(example, page, "exec"), namespace)
    return capsys.readouterr().out


def test_the_examples_of_the_readme_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_examples("README.md", capsys)
    assert printed.startswith("door\n")
    assert "torch.Size([1, 2, 12, 12])" in printed
    assert sum(" s: " in line for line in printed.splitlines()) == len(TRANSCRIPTS[DISPOSED].split())
    assert printed.splitlines()[-1].count("Entry(") == 3


def test_the_tutorial_for_text_runs(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_examples("docs/tutorial-text.md", capsys)
    assert printed.startswith("door\n")
    patched = [float(line.split()[1]) for line in printed.splitlines()[-4:]]
    assert patched[0] > patched[-1], "a patch in front of the layer that reads the verb brings the answer back"


def test_the_examples_for_hugging_face_users_run(capsys: pytest.CaptureFixture[str]) -> None:
    run_examples("docs/from-hugging-face.md", capsys)


def test_the_tutorial_for_speech_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_examples("docs/tutorial-speech.md", capsys)
    assert sum(" s: " in line for line in printed.splitlines()) == len(TRANSCRIPTS[DISPOSED].split())
    assert printed.splitlines()[-1].startswith("torch.Size([2, ")


@pytest.mark.shell
def test_the_readme_works_when_pasted_into_a_fresh_shell(folder: Path) -> None:
    """Every command of the README in order, then its examples, from a clone, with nothing but its own environments."""
    clone = folder / "clone"
    origin = f"file://{ROOT}"
    subprocess.run(["git", "clone", "--quiet", origin, clone], check=True)
    for name in ("my-classifier", "facebook", "speech.wav"):
        shutil.move(folder / name, clone / name)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = "\n".join(SHELL.findall(readme))
    example = clone / "example.py"
    example.write_text("\n".join(PYTHON.findall(readme)), encoding="utf-8")
    script = f"set -euo pipefail\ncd '{clone}'\n{commands}\npython example.py\n"
    kept = ("HOME", "LANG", "TMPDIR", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONFIG_FILE")
    fresh = {name: os.environ[name] for name in kept if name in os.environ}
    fresh["PATH"] = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if sys.prefix not in part)
    fresh["PIP_CONSTRAINT"] = str(clone / "constraints.txt")  # the versions that the suite runs with
    done = subprocess.run(["bash", "-c", script], env=fresh, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Which heads, MLPs and biases decide 'door'" in done.stdout
