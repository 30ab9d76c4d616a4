"""The layers of the package: an import points to a lower layer, or sideways without a cycle.

Walks every import of every module, those inside functions too. Run by ``make check`` and by a test.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "encoderlens"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "shapes", "names", "not_on_encoders", "given", "slices", "precision", "devices", "memory", "fingerprint")
    + ("module_tree", "progress", "tables"),
    ("sequence", "batch", "tokenizing", "alignment", "run_state", "hook_points", "hooked_root_module", "factored_matrix")
    + ("config", "config_from_dict"),
    ("components",),
    ("state_dicts", "tensor_source", "weights", "families", "sentence_folder", "tokenizer_files", "hub", "switches")
    + ("wrapped_models", "adapters", "loading", "text_input", "audio"),
    ("weight_stacks", "encoder", "linearised", "carried_rows", "cached_run", "activation_cache", "conversion")
    + ("pretrained_encoder", "token_lookup", "hooked_encoder", "hooked_audio_encoder", "bert_next_sentence_prediction"),
    ("analysis",),
    ("utils", "patching", "drop_in"),
    ("cli",),
)
LAYER_OF = {room: index for index, rooms in enumerate(LAYERS) for room in rooms}


def imports_of(path: Path) -> set[str]:
    """The package's modules that a file imports, as dotted names below the package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.ImportFrom):
            raise SystemExit(f"{path}:{node.lineno}: relative import; write it out")
    inside = {name.removeprefix("encoderlens.") for name in found if name.startswith("encoderlens.")}
    return {name for name in inside if module_path(name) is not None}


def module_path(name: str) -> Path | None:
    """The file of a dotted name below the package, None if it is no module."""
    base = PACKAGE.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def problems() -> list[str]:
    """Every import that points upwards, every room without a layer, and every cycle."""
    graph: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = module_name(path)
        if name != "__init__":
            graph[name] = imports_of(path) - {name}
    rooms = {name.split(".")[0] for name in graph}
    found = [f"{room} stands in no layer" for room in sorted(rooms - LAYER_OF.keys())]
    for name, targets in graph.items():
        for target in sorted(targets):
            here, there = LAYER_OF.get(name.split(".")[0], 0), LAYER_OF.get(target.split(".")[0], 0)
            if there > here:
                found.append(f"{name} (layer {here}) imports {target} (layer {there})")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"cycle: {' -> '.join(error.args[1])}")
    return found


if __name__ == "__main__":
    bad = problems()
    print("\n".join(bad) or f"imports: {len(LAYERS)} layers, no import upwards, no cycle")
    sys.exit(bool(bad))
