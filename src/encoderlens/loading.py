"""Find a checkpoint (folder, hub id, embedded name or Hugging Face model) and open it, without any model class."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import nn

from encoderlens.adapters import ADAPTER, ADAPTER_WEIGHTS, Adapter, is_adapter, merged, read_adapter
from encoderlens.components.effective import effective_weights, weight_made_of
from encoderlens.config import SentenceEmbeddingPart
from encoderlens.errors import CheckpointNotFoundError, ConfigError, TaskError, UnknownArchitectureError, WeightsError
from encoderlens.families import REGISTRY, family_of
from encoderlens.families.family import NOT_HEADS, ConfigReader, Family
from encoderlens.given import described
from encoderlens.hub import Hub
from encoderlens.names import did_you_mean
from encoderlens.sentence_folder import (
    MODULES,
    SETTINGS,
    TRANSFORMER_FILES,
    SentenceFolder,
    module_folders,
    read_sentence_folder,
    score_function,
    transformer_folder,
)
from encoderlens.state_dicts import unwrapped
from encoderlens.tensor_source import (
    WEIGHT_FILES,
    JoinedSource,
    MemorySource,
    TensorSource,
    open_folder,
    shard_names,
    without_wrappers,
)
from encoderlens.tokenizer_files import TOKENIZER_FILES, has_tokenizer, load_tokenizer, read_tokenizer
from encoderlens.weights import find
from encoderlens.wrapped_models import ModelInMemory, taken_out

log = logging.getLogger("encoderlens")

EMBEDDED_PREFIX = "encoderlens/"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_EXTRAS = (*PROCESSOR_FILES, "config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
ENCODER_TASK = "encoder"
ANY_HUB = Hub()  # the default branch, through the hub client's own cache


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is open and understood, its weights not yet read.

    Attributes:
        family: the family that it belongs to.
        hf_class: the Hugging Face class that it declares (for ``task="encoder"``, the family's base model).
        task: the head that ``return_type="logits"`` shall run, None for none.
        parts: the heads, and the pooler, to carry.
        config: the Hugging Face configuration, complete with defaults.
        source: the weights.
        where: the folder, or the class of the Hugging Face model, for messages.
        folder: the folder, None for a Hugging Face model in memory.
        name: what it was asked for as.
        leave: tensors that no part takes are left, not refused.
        sentence: what follows the transformer in a sentence encoder; None for any other checkpoint.
        tokenizer, extractor: those that came with a model in memory; None without one.
        dropped: tensors that are not needed: of heads that nobody asked for and that are not whole, and of which weights of a
            parametrised or pruned Hugging Face model are made.
    """

    family: Family
    hf_class: str
    task: str | None
    parts: frozenset[str]
    config: dict[str, Any]
    source: TensorSource
    where: str
    folder: Path | None
    name: str
    leave: bool
    sentence: SentenceEmbeddingPart | None = None
    dropped: tuple[str, ...] = ()
    tokenizer: Any = None
    extractor: Any = None

    @property
    def score_fn(self) -> str | None:
        """The activation function on a cross-encoder's logit; None for any other checkpoint."""
        return score_function(self.folder, self.config)

    def reader(self) -> ConfigReader:
        return ConfigReader(self.config, _config_class(self.family.model_type)().to_dict(), self.where)


def embedded_names() -> list[str]:
    """The checkpoints that ship with the package."""
    root = files("encoderlens") / "checkpoints"
    if not root.is_dir():
        return []
    return sorted(f"{EMBEDDED_PREFIX}{entry.name}" for entry in root.iterdir() if (entry / "config.json").is_file())


def open_checkpoint(model_name: str | None, *, hf_model: Any = None, hub: Hub = ANY_HUB, task: Any = None) -> Checkpoint:
    """Open a checkpoint by name, or a Hugging Face model in memory.

    Raises:
        CheckpointNotFoundError: if there is no such folder, embedded name or hub id.
        UnknownArchitectureError: for a family or class that is not in the registry.
        TaskError: for a task whose head the checkpoint does not have.
        WeightsError: for damaged files, or a declared head without weights.
    """
    if not isinstance(task, str | None):
        raise TaskError(f"task={task!r}; it is the name of a head, or {ENCODER_TASK!r} for just the encoder")
    if hf_model is not None:
        return _from_memory(taken_out(hf_model), model_name, task)
    if not model_name:
        raise CheckpointNotFoundError("give a model: a folder, a hub id, an embedded name, or hf_model=")
    folder = find_folder(model_name, hub)
    sentence = None if task == ENCODER_TASK else read_sentence_folder(folder)
    folder = transformer_folder(folder)
    if is_adapter(folder):
        return _from_memory(replace(_merged(folder, hub), sentence=sentence), model_name, task)
    where = str(folder / "config.json")
    values = _read_json(folder / "config.json")
    family = family_of(values.get("model_type"), where)
    config = _complete(family, values, where)
    declared = [family.old_classes.get(name, name) for name in _architectures(values, where)]
    source = open_folder(folder)
    if sentence is None:
        return _understand(family, declared, config, source, task, where, folder, model_name)
    found = _understand(family, _with_weights(family, declared, source), config, source, task, where, folder, model_name)
    return _followed(found, sentence)


def _followed(found: Checkpoint, sentence: SentenceFolder) -> Checkpoint:
    """A transformer's checkpoint with what follows it in a sentence encoder."""
    joined = JoinedSource({"": found.source, **{f"{name}/": weights for name, weights in sentence.sources.items()}})
    return replace(found, source=joined, sentence=sentence.part)


def _merged(folder: Path, hub: Hub) -> ModelInMemory:
    """The model of an adapter's folder, merged with it."""
    adapter = read_adapter(folder)
    return merged(adapter, _base_folder(adapter, hub))


def _base_folder(adapter: Adapter, hub: Hub) -> Path:
    """The folder of the model that an adapter changes."""
    try:
        return find_folder(adapter.base, replace(hub, revision=adapter.revision))
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(f"{adapter.folder} holds an adapter for {adapter.base}: {error}") from error


def _architectures(values: Mapping[str, Any], where: str) -> list[str]:
    """The classes that a configuration names; none if it names none."""
    names = values.get("architectures")
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}: architectures is {names!r}; it must be a list of names of classes")
    return names


def _with_weights(family: Family, declared: list[str], source: TensorSource) -> list[str]:
    """The classes of a sentence encoder's transformer whose heads are there; the base class if there is none of them."""
    present = family.parts_in(source.tensors)
    unknown = [name for name in declared if name not in family.classes]
    whole = [name for name in declared if set(family.classes.get(name, ())) <= present]
    return [*whole, *unknown] or [family.base_class]


def _from_memory(found: ModelInMemory, model_name: str | None, task: str | None) -> Checkpoint:
    """The checkpoint that a model in memory is, with what came around it."""
    sentence = None if task == ENCODER_TASK else found.sentence
    checkpoint = _from_hf_model(found, model_name, task, follows=sentence is not None)
    checkpoint = replace(checkpoint, tokenizer=found.tokenizer, extractor=found.extractor)
    return checkpoint if sentence is None else _followed(checkpoint, sentence)


def _from_hf_model(given: ModelInMemory, model_name: str | None, task: str | None, follows: bool) -> Checkpoint:
    import transformers

    hf_model = given.model
    if not isinstance(hf_model, transformers.PreTrainedModel):
        inside = ": give the model inside it (torch.compile's ._orig_mod, DataParallel's .module)"
        remedy = inside if isinstance(hf_model, nn.Module) else ""
        raise ConfigError(
            "hf_model is a model of transformers, alone or in a SentenceTransformer, CrossEncoder, pipeline or PeftModel, not "
            f"{type(hf_model).__name__}{remedy}"
        )
    hf_class = type(hf_model).__name__
    if type(hf_model) is not getattr(transformers, hf_class, None) and task != ENCODER_TASK:
        raise UnknownArchitectureError(
            f"hf_model is a {type(hf_model).__module__}.{hf_class}, which is no class of transformers, so that it may compute "
            "anything. task='encoder' loads just its encoder, if that is one of transformers"
        )
    family = family_of(hf_model.config.model_type, hf_class)
    made = _made_weights(hf_model, hf_class)
    state = {name: value for name, value in hf_model.state_dict().items() if name not in given.absent}
    source = without_wrappers(MemorySource(state | made, hf_class), hf_class)
    config = hf_model.config.to_dict() | dict(given.settings)
    declared = _with_weights(family, [hf_class], source) if follows else [hf_class]
    found = _understand(family, declared, config, source, task, hf_class, None, model_name or hf_class)
    # A family's table names either a weight that is made of others, or these; whatever it does not name is not needed.
    spare = (unwrapped(name) for name in (*made, *state) if name in made or weight_made_of(name) in made)
    return replace(found, dropped=(*found.dropped, *spare))


def _made_weights(hf_model: Any, hf_class: str) -> dict[str, Any]:
    """The weights that a model makes of others."""
    try:
        return effective_weights(hf_model)
    except RuntimeError as error:  # of torch: it does not compute in float8, say
        raise WeightsError(
            f"{hf_class}: its parametrised weights cannot be computed ({_one_line(error)}). If they are quantised, take those "
            "that they were made from, or dequantise them first"
        ) from error


def _understand(
    family: Family,
    declared: list[str],
    config: dict[str, Any],
    source: TensorSource,
    task: str | None,
    where: str,
    folder: Path | None,
    name: str,
) -> Checkpoint:
    _check_code(family, config, where)
    quantised = config.get("quantization_config")
    if quantised:
        raise ConfigError(
            f"{where}: quantization_config={quantised!r} is not understood: weights are read as numbers, not as codes of them. "
            "Load the model that this one was made from, or give hf_model= after hf_model.dequantize()"
        )
    present = family.parts_in(source.tensors)
    if task == ENCODER_TASK:
        parts = present & NOT_HEADS
        return Checkpoint(family, family.base_class, None, parts, config, source, where, folder, name, leave=True)
    hf_class = _class_of(family, declared, present, task, where)
    tasks = family.classes[hf_class]
    unstored = family.bare.intersection(tasks) if config.get("tie_word_embeddings") else frozenset[str]()
    parts = (present | unstored) - _rivals(family, present, tasks)
    if task in parts:
        parts -= _rivals(family, parts, (task,))
    broken = _broken(family, parts - {*tasks, task}, parts, source)
    parts -= frozenset(broken)
    dropped = tuple(sorted({name for names in broken.values() for name in names}))
    if dropped:
        log.warning(
            "%s: left out, as the %s head is not whole: %s", where, " and the ".join(sorted(broken)), ", ".join(dropped)
        )
    _check_distinct(family, parts, where)
    for wanted in tasks:
        if wanted not in parts:
            key = family.part_rows[wanted][0].source
            hint = whose(family, source, where)
            raise WeightsError(f"{where} is a {hf_class}, but the weights of its {wanted} head ({key}, …) are missing{hint}")
    pooled = sorted(parts & family.pooled)
    if pooled and "pooler" not in parts:
        key = family.part_rows["pooler"][0].source
        raise WeightsError(
            f"{where} has a {pooled[0]} head, but the weights of the pooler that it reads ({key}, …) are missing"
        )
    chosen = _task_of(task, tasks, parts, where)
    return Checkpoint(family, hf_class, chosen, parts, config, source, where, folder, name, leave=False, dropped=dropped)


def _check_code(family: Family, config: Mapping[str, Any], where: str) -> None:
    """Refuse a checkpoint that comes with code of its own, whatever family it says that it belongs to."""
    code = config.get("auto_map")
    if code and not family.own_code:
        raise UnknownArchitectureError(
            f"{where}: auto_map={code!r} is code of the checkpoint's own, which is never run and is not understood. If it "
            f"computes what {family.base_class} of transformers does, remove auto_map from the configuration; if it does not, "
            "this model is not supported"
        )


def _broken(family: Family, unasked: frozenset[str], parts: frozenset[str], source: TensorSource) -> dict[str, frozenset[str]]:
    """Heads that nobody asked for and that cannot run, with their tensors: some are missing, or the pooler is."""
    broken: dict[str, frozenset[str]] = {}
    for head in unasked - NOT_HEADS:
        found = {row: find(row, source.tensors, family.base_prefix) for row in family.part_rows[head]}
        there = {row.target for row, piece in found.items() if piece is not None}
        lacking = {row.target for row in found} - there - {"unembed.weight"}  # which may be the embedding
        if lacking or (head in family.pooled and "pooler" not in parts):
            broken[head] = frozenset(piece.name for piece in found.values() if piece is not None)
    return broken


def whose(family: Family, source: TensorSource, where: str) -> str:
    """What to add to an error about weights, if they are named like those of another family."""
    known = {other.name: other.n_known(source.tensors) for other in REGISTRY.values()}
    likeliest = max(known, key=lambda name: known[name])
    if known[likeliest] <= known[family.name]:
        return ""
    return (
        f". The tensors of {next(iter(source.tensors.values())).origin} are named like those of {likeliest}, and {where} says "
        f"{family.name}: are the two from different folders?"
    )


def _class_of(family: Family, declared: list[str], present: frozenset[str], task: str | None, where: str) -> str:
    known = [name for name in declared if name in family.classes]
    if known:
        return known[0]
    if declared:
        raise UnknownArchitectureError(
            f"{where} declares {', '.join(declared)}, which is not supported{did_you_mean(declared[0], family.classes)}; "
            f"supported {family.name} classes: {', '.join(family.classes)}. task='encoder' loads just its encoder"
        )
    if task is not None:
        fitting = [name for name, tasks in family.classes.items() if tasks == (task,)]
        if fitting:
            return fitting[0]
    return family.class_for(present, where)


def _rivals(family: Family, present: frozenset[str], tasks: tuple[str, ...]) -> frozenset[str]:
    """Heads that only seem to be there, because one of ``tasks`` has the same keys."""
    own = {row.source for task in tasks for row in family.part_rows[task]}
    return frozenset(part for part in present if part not in tasks and any(row.source in own for row in family.part_rows[part]))


def _check_distinct(family: Family, parts: frozenset[str], where: str) -> None:
    owners: dict[str, str] = {}
    for part in sorted(parts):
        for row in family.part_rows[part]:
            owner = owners.setdefault(row.source, part)
            if owner != part:
                raise UnknownArchitectureError(
                    f"{where}: {row.source} can belong to a {owner} or a {part} head; name the class in architectures, or "
                    "choose one by task="
                )


def _task_of(task: str | None, tasks: tuple[str, ...], parts: frozenset[str], where: str) -> str | None:
    carried = sorted(parts - NOT_HEADS)
    if task is None:
        return tasks[0] if tasks else (carried[0] if carried else None)
    if task not in carried:
        has = f"it has {', '.join(carried)}" if carried else "it has no head"
        suggestion = did_you_mean(task, [*carried, ENCODER_TASK])
        raise TaskError(f"{where} has no {task!r} head: {has}; task='encoder' loads just the encoder{suggestion}")
    return task


def find_folder(model_name: str, hub: Hub = ANY_HUB, *, tokenizer_only: bool = False) -> Path:
    """The local folder of a name: an embedded checkpoint, a folder, or a hub id (fetched if it is not cached yet).

    Args:
        tokenizer_only: no weights are needed, so none are fetched; there may be no configuration either.
    """
    if model_name.startswith(EMBEDDED_PREFIX):
        if model_name not in embedded_names():
            raise CheckpointNotFoundError(
                f"there is no embedded checkpoint {model_name!r}{did_you_mean(model_name, embedded_names())}; embedded: "
                f"{', '.join(embedded_names())}"
            )
        return Path(str(files("encoderlens") / "checkpoints" / model_name.removeprefix(EMBEDDED_PREFIX)))
    folder = Path(model_name).expanduser()
    if folder.is_dir():
        if not tokenizer_only and not any((folder / name).is_file() for name in ("config.json", MODULES, ADAPTER)):
            raise CheckpointNotFoundError(f"{folder} has no config.json: it is not a Hugging Face checkpoint folder")
        return folder
    if folder.exists():
        raise CheckpointNotFoundError(f"{folder} is a file; give the folder of the checkpoint")
    if model_name.count("/") > 1 or model_name.startswith((".", "/", "~")):
        raise CheckpointNotFoundError(f"there is no folder {model_name!r}")
    return _fetch(model_name, hub, tokenizer_only)


def _fetch(repo: str, hub: Hub, tokenizer_only: bool) -> Path:
    """A hub repository's configuration, weights and tokenizer, those of all its modules included, or the tokenizer alone,
    through the hub's cache.

    Raises:
        CheckpointNotFoundError: if neither the cache nor the hub has the repository.
    """
    hub = hub.connected()

    def fetch(name: str, folder: str = "") -> Path | None:
        return hub.file(repo, f"{folder}/{name}" if folder else name)

    def fetch_first(names: Iterable[str], folder: str = "") -> Path | None:
        return next((path for name in names if (path := fetch(name, folder)) is not None), None)

    def fetch_weights(folder: str) -> None:
        weights = fetch_first(WEIGHT_FILES, folder)
        if weights is not None and weights.name.endswith(".index.json"):
            for shard in shard_names(weights):
                fetch(shard, folder)

    needed = (*TOKENIZER_FILES, *PROCESSOR_FILES) if tokenizer_only else ("config.json", MODULES, ADAPTER)
    found = fetch_first(needed)
    if found is None:
        raise hub.not_found(repo, needed[0])
    modules = None if tokenizer_only else fetch(MODULES)
    transformer, *others = [""] if modules is None else module_folders(modules)
    extras = () if modules is None else TRANSFORMER_FILES
    for name in (*TOKENIZER_FILES, *TOKENIZER_EXTRAS, *extras):
        fetch(name, transformer)
    if not tokenizer_only:
        fetch_weights(transformer)
        if fetch(ADAPTER, transformer) is not None:
            fetch_first(ADAPTER_WEIGHTS, transformer)
    for folder in others:
        fetch("config.json", folder)
        fetch_weights(folder)
    if modules is not None:
        fetch(SETTINGS)
    return found.parent


def tokenizer_of(checkpoint: Checkpoint, model_name: str | None, hub: Hub) -> Any | None:
    """The tokenizer of a checkpoint's folder; of a model in memory, the one that came with it, or that of the name given with
    it. None without either.
    """
    if checkpoint.tokenizer is not None:
        return checkpoint.tokenizer
    if checkpoint.folder is None and model_name is not None:
        return load_tokenizer(find_folder(model_name, hub, tokenizer_only=True))
    return load_tokenizer(checkpoint.folder)


def processor_of(checkpoint: Checkpoint, model_name: str | None, hub: Hub, default: Any) -> Any:
    """The processor of a checkpoint's folder: a feature extractor, with the tokenizer if there is one; of a model in memory,
    the one that came with it, or that of the name given with it.

    Args:
        default: the feature extractor where there are no files of one.

    Raises:
        ConfigError: for a feature extractor's files that cannot be read.
    """
    folder = checkpoint.folder
    if folder is None and model_name is not None and checkpoint.extractor is None:
        folder = find_folder(model_name, hub, tokenizer_only=True)
    extractor = checkpoint.extractor or _load_extractor(folder, default)
    tokenizer = checkpoint.tokenizer or load_tokenizer(folder)
    if tokenizer is None:
        return extractor
    from transformers import Wav2Vec2Processor

    return Wav2Vec2Processor(extractor, tokenizer)


def _load_extractor(folder: Path | None, default: Any) -> Any:
    if folder is None or not any((folder / name).is_file() for name in PROCESSOR_FILES):
        return default
    from transformers import AutoFeatureExtractor

    try:
        return AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # every class of transformers has errors of its own
        raise ConfigError(f"the processor files in {folder} cannot be read: {_one_line(error)}") from error


def tokenizer_named(name: str | Path, hub: Hub = ANY_HUB) -> Any:
    """The tokenizer of a folder, hub id or embedded name.

    Raises:
        CheckpointNotFoundError: if it has no tokenizer files.
        ConfigError: for files that cannot be read.
    """
    folder = find_folder(str(name), hub, tokenizer_only=True)
    if not has_tokenizer(folder):
        raise CheckpointNotFoundError(f"{folder} has no tokenizer files ({', '.join(TOKENIZER_FILES)})")
    return read_tokenizer(folder)


def tokenizer_given(tokenizer: Any, hub: Hub = ANY_HUB) -> Any:
    """A tokenizer as it is, and for the name of one (a folder, hub id or embedded name) that tokenizer; None for None.

    Raises:
        ConfigError: for anything else.
        CheckpointNotFoundError: for a name that leads to none.
    """
    if isinstance(tokenizer, str | Path):
        return tokenizer_named(tokenizer, hub)
    if tokenizer is None:
        return None
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        found = f"the class {tokenizer.__name__}" if isinstance(tokenizer, type) else described(tokenizer)
        raise ConfigError(
            f"tokenizer is {found}; give a Hugging Face tokenizer (of the tokenizers package, "
            "PreTrainedTokenizerFast(tokenizer_object=tokenizer)), or the folder or name of one"
        )
    return tokenizer


def hf_config(model_type: str, values: Mapping[str, Any]) -> Any:
    """A Hugging Face configuration object with these values."""
    return _config_class(model_type).from_dict(dict(values))


def _complete(family: Family, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A configuration with its class's defaults for what it leaves out."""
    try:
        return hf_config(family.model_type, family.renamed(values)).to_dict()
    except Exception as error:  # each class of transformers has checks, and errors, of its own
        raise ConfigError(f"{where} is not a {family.name} configuration: {_one_line(error)}") from error


def _config_class(model_type: str) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]


def modality_of(model_name: str) -> str:
    """What a checkpoint reads: "text" or "audio".

    Raises:
        CheckpointNotFoundError, UnknownArchitectureError: as ``open_checkpoint``.
    """
    folder = transformer_folder(find_folder(model_name))
    if is_adapter(folder):
        folder = transformer_folder(_base_folder(read_adapter(folder), ANY_HUB))
    path = folder / "config.json"
    return family_of(_read_json(path).get("model_type"), str(path)).modality


def check_modality(found: str, wanted: str, where: str) -> None:
    """Refuse a text model for the audio class, and the other way round.

    Raises:
        ConfigError: with the class to use.
    """
    if found != wanted:
        remedy = {"text": "HookedEncoder", "audio": "HookedAudioEncoder"}[found]
        raise ConfigError(f"{where} is a model that reads {found}: use {remedy}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path} is missing: {MODULES} says that the transformer is there; download it")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return values
