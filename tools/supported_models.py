"""Write the table of docs/models.md from the registry, with the parity that is measured here: the largest difference
from Hugging Face at real positions of a padded batch, relative to the largest magnitude, over every class and head of a family
(final stream and logits, float32, tiny random models of the test suite).

``--check`` measures nothing: it fails if anything else in the table is stale, or a parity in it is above 1e-5.
"""

import argparse
import re
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.tiny import tiny_batch, tiny_hf, tiny_waves  # noqa: E402

from encoderlens import HookedAudioEncoder, HookedEncoder  # noqa: E402
from encoderlens.families import REGISTRY  # noqa: E402
from encoderlens.families.family import Family  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- supported models: begin -->", "<!-- supported models: end -->"
TOLERANCE = 1e-5
HEADER = (
    "| family | Hugging Face classes | heads | norms | positions | parity |",
    "|---|---|---|---|---|---|",
)


def facts(family: Family) -> list[str]:
    """A family's cells, but for the parity."""
    start = _common_start(list(family.classes))
    classes = f"`{start}`: " + ", ".join(name.removeprefix(start) for name in family.classes)
    heads = ", ".join(f"`{task}`" for task in dict.fromkeys(task for tasks in family.classes.values() for task in tasks))
    return [family.name, classes, heads, family.layer_norm, family.positions]


def _common_start(names: list[str]) -> str:
    base = next(name for name in names if name.endswith("Model"))
    return base.removesuffix("Model")


def parity(family: Family) -> float:
    """The largest relative difference from Hugging Face over the classes of a family."""
    return max(_parity_of(family, hf_class) for hf_class in family.classes)


@torch.no_grad()
def _parity_of(family: Family, hf_class: str) -> float:
    hf_model = tiny_hf(hf_class)
    ours, theirs, mask = (_text if family.modality == "text" else _audio)(hf_model)
    differences = [_difference(*pair, mask) for pair in zip(ours, theirs, strict=True)]
    return max(differences)


def _difference(ours: Tensor, theirs: Tensor, mask: Tensor) -> float:
    if ours.shape[:2] == mask.shape:
        ours, theirs = ours[mask], theirs[mask]
    return float((ours - theirs).abs().max() / theirs.abs().max())


Outputs = tuple[list[Tensor], list[Tensor], Tensor]


def _text(hf_model: Any) -> Outputs:
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    batch = tiny_batch(n_types=model.cfg.n_token_types or 0)
    types = {"token_type_ids": batch["types"]} if "token_type_ids" in signature(hf_model.forward).parameters else {}
    theirs = hf_model(batch["tokens"], attention_mask=batch["mask"], output_hidden_states=True, **types)
    prepared = model.prepare(batch["tokens"], batch["types"], batch["mask"])
    return _pairs(model, prepared, theirs, batch["mask"].bool())


def _audio(hf_model: Any) -> Outputs:
    model = HookedAudioEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    model.processor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    clips = tiny_waves()
    inputs = model.processor([clip.numpy() for clip in clips], sampling_rate=16_000, padding=True, return_tensors="pt")
    theirs = hf_model(**inputs, output_hidden_states=True)
    prepared = model.prepare(clips)
    return _pairs(model, prepared, theirs, prepared.sequence.real)


def _pairs(model: Any, prepared: Any, theirs: Any, mask: Tensor) -> Outputs:
    ours, reference = [model(prepared, return_type="hidden")], [theirs.hidden_states[-1]]
    if model.task is not None:
        ours.append(model(prepared, return_type="logits"))
        reference.append(_logits(theirs).reshape(ours[-1].shape))
    return ours, reference, mask


def _logits(output: Any) -> Tensor:
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output.prediction_logits if "prediction_logits" in output else output.logits


def table(parities: dict[str, float]) -> str:
    """The table, in Markdown."""
    rows = [[*facts(family), f"{parities[family.model_type]:.1e}"] for family in REGISTRY.values()]
    return "\n".join([*HEADER, *(f"| {' | '.join(row)} |" for row in rows)])


def problems(text: str) -> list[str]:
    """What is stale in the table."""
    lines = [line for line in text.split(BEGIN)[1].split(END)[0].splitlines() if line]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[len(HEADER) :]]
    found = [] if tuple(lines[: len(HEADER)]) == HEADER else ["the header"]
    expected = [facts(family) for family in REGISTRY.values()]
    found += [f"the row of {row[0]}" for row in expected if row not in [cells[:-1] for cells in rows]]
    found += [f"a row of {cells[0]}, which is no family" for cells in rows if cells[:-1] not in expected]
    return found + [f"the parity of {cells[0]}: {cells[-1]}" for cells in rows if not _is_parity(cells[-1])]


def _is_parity(cell: str) -> bool:
    return re.fullmatch(r"\d\.\de-\d\d", cell) is not None and float(cell) <= TOLERANCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the table is stale")
    text = PAGE.read_text(encoding="utf-8")
    if parser.parse_args().check:
        stale = problems(text)
        print("\n".join(f"stale: {what}" for what in stale) or "the table is up to date")
        sys.exit(bool(stale))
    torch.set_num_threads(1)
    made = table({family.model_type: parity(family) for family in REGISTRY.values()})
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
