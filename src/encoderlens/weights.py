"""The row table: how a checkpoint's tensors become a model's parameters, and back.

A family declares rows ``source key -> (target parameter, einops pattern)``. Applying a table checks that every source
tensor is used or knowingly ignored, that every parameter is filled exactly once, that shapes agree and that tensors which
share a parameter are equal. The inverse is each pattern with its sides swapped.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch
from einops import rearrange
from torch import Tensor, nn

from encoderlens.components.effective import REMEDY, effective_weights, made_of_others
from encoderlens.errors import WeightsError
from encoderlens.names import did_you_mean
from encoderlens.precision import DTYPES, same_numbers
from encoderlens.state_dicts import unwrapped
from encoderlens.tensor_source import TensorSource

CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Piece:
    """A stored tensor, or one of so many equal pieces of it along its first axis.

    Attributes:
        name: its key in the checkpoint.
        index, count: which piece, of how many.
    """

    name: str
    index: int = 0
    count: int = 1

    def at(self, place: str, fill: str) -> "Piece":
        """The same with one place of the key filled in."""
        return replace(self, name=self.name.replace(place, fill))


@dataclass(frozen=True)
class Row:
    """One tensor.

    Attributes:
        source: its key in the checkpoint; ``{l}`` stands for the layer, ``{c}`` for the convolution of a front end.
        target: the parameter, with the same places. A model that has no such parameter passes the row over.
        pattern: einops pattern from the source's axes to the parameter's, in axis names of the glossary; empty: as it is.
        legacy: other spellings of the key, also as a piece of a tensor that holds several.
        spare: the class stores this tensor but computes with another of the same target; where they differ it is kept aside.
        crop: the parameter may be shorter than the source along the first axis, if positions are cut to a chosen ``n_ctx``.
        piece: index and count, of a parameter that is a piece of the source.
    """

    source: str
    target: str
    pattern: str = ""
    legacy: tuple[str | Piece, ...] = ()
    crop: bool = False
    spare: bool = False
    piece: tuple[int, int] = (0, 1)

    @property
    def spellings(self) -> tuple[Piece, ...]:
        """Its own spelling and the legacy ones."""
        return (Piece(self.source, *self.piece), *(Piece(old) if isinstance(old, str) else old for old in self.legacy))

    def at(self, place: str, index: int, key: str) -> "Row":
        """The row with one place filled in: with ``index`` in the parameter's name, with ``key`` in those of the checkpoint."""
        return replace(
            self,
            source=self.source.replace(place, key),
            target=self.target.replace(place, str(index)),
            legacy=tuple(old.replace(place, key) if isinstance(old, str) else old.at(place, key) for old in self.legacy),
        )


def linear(source: str, target: str) -> tuple[Row, ...]:
    return Row(f"{source}.weight", f"{target}.weight"), Row(f"{source}.bias", f"{target}.bias")


def norm(source: str, target: str) -> tuple[Row, ...]:
    return (
        Row(f"{source}.weight", f"{target}.w", legacy=(f"{source}.gamma",)),
        Row(f"{source}.bias", f"{target}.b", legacy=(f"{source}.beta",)),
    )


_OF_BLOCK = {
    **{"q": "attn.q", "k": "attn.k", "v": "attn.v", "o": "attn.o"},
    **{"gate": "mlp.gate", "input": "mlp.input", "output": "mlp.output", "ln1": "ln1", "ln2": "ln2"},
}


def block(layer: str, **sources: str) -> tuple[Row, ...]:
    """The linear layers and norms of a block: ``q``, ``k``, ``v``, ``o``, ``input``, ``gate``, ``output``, ``ln1``, ``ln2``."""
    return tuple(
        row
        for name, source in sources.items()
        for row in (norm if name.startswith("ln") else linear)(f"{layer}.{source}", f"blocks.{{l}}.{_OF_BLOCK[name]}")
    )


def fused(source: str, *targets: str) -> tuple[Row, ...]:
    """Linear layers that are stored as one, one below the other."""
    return tuple(
        Row(f"{source}.{kind}", f"{target}.{kind}", piece=(index, len(targets)))
        for kind in ("weight", "bias")
        for index, target in enumerate(targets)
    )


def expand(rows: Iterable[Row], layers: Mapping[int, str], n_convs: int = 0) -> list[Row]:
    """Rows with ``{l}`` once for every layer, whose key in the checkpoint is given, and rows with ``{c}`` once for every
    convolution of the front end.
    """
    expanded = list(rows)
    for place, keys in (("{l}", layers), ("{c}", {index: str(index) for index in range(n_convs)})):
        expanded = [
            filled
            for row in expanded
            for filled in ((row.at(place, *entry) for entry in keys.items()) if place in row.target else (row,))
        ]
    return expanded


def respelt(rows: Iterable[Row], old: Mapping[str, str | Piece]) -> tuple[Row, ...]:
    """Rows that are also found where any of these parts of a key stand under their old names.

    Args:
        old: the old name of a part of a key; a Piece of it where one tensor held several.
    """
    return tuple(replace(row, legacy=_spellings(row, old)[1:]) for row in rows)


def _spellings(row: Row, old: Mapping[str, str | Piece]) -> tuple[Piece, ...]:
    """Every mixture of old and new; the row's own spelling is the first."""
    found = list(row.spellings)
    for new, name in old.items():
        found += [_respelt(piece, new, name) for piece in found if new in piece.name]
    return tuple(found)


def _respelt(piece: Piece, new: str, old: str | Piece) -> Piece:
    if isinstance(old, str):
        return replace(piece, name=piece.name.replace(new, old))
    return replace(old, name=piece.name.replace(new, old.name))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """What a table fills: parameters, under each of their names, and buffers. A buffer has a value before it is filled.

    A weight that is made of others is there too, as what it is now.
    """
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    return {unwrapped(name): tensor for name, tensor in (tensors | effective_weights(model)).items()}


def present(rows: Iterable[Row], model: nn.Module) -> list[Row]:
    """Those whose parameter, or buffer, the model has."""
    names = tensors_of(model)
    return [row for row in rows if row.target in names]


@dataclass(frozen=True)
class LoadReport:
    """What became of the checkpoint's tensors.

    Attributes:
        loaded: how many were used.
        ignored: keys that hold nothing the model needs (position ids and the like, a bias that was not resized).
        left: keys of parts that were left out on request (``task="encoder"``).
        spare: tensors that the class stores but the model does not compute with, for the way back.
    """

    loaded: int = 0
    ignored: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    spare: Mapping[str, Tensor] = field(default_factory=dict)


def find(row: Row, names: Iterable[str] | Mapping[str, object], base_prefix: str) -> Piece | None:
    """Where a checkpoint holds a row: under its own key or a legacy one, with or without the base prefix."""
    spellings = row.spellings
    candidates = (*spellings, *(replace(old, name=old.name.removeprefix(base_prefix)) for old in spellings))
    return next((piece for piece in candidates if piece.name in names), None)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a key is like one of these file-name patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def apply(
    rows: Sequence[Row],
    source: TensorSource,
    model: nn.Module,
    *,
    sizes: Mapping[str, int],
    base_prefix: str = "",
    ignored: Iterable[str] = (),
    kept: Iterable[str] = (),
    tied: bool = True,
    leave: bool = False,
    crop: bool = False,
) -> LoadReport:
    """Fill every parameter of ``model`` from ``source``, and every buffer that it holds.

    Args:
        rows: the expanded table; rows whose parameter the model does not have are passed over.
        sizes: axis sizes for patterns (``head``, ``d_head``), and of positions (``pos``) if there is a table of them.
        ignored: file-name patterns of keys that hold nothing needed.
        kept: file-name patterns of keys that the model does not compute with, but keeps for the way back.
        tied: whether the configuration ties what can be tied; spare tensors may then not differ either.
        leave: leave tensors that no row names (they are reported) instead of refusing them.
        crop: positions were cut to a chosen ``n_ctx``, so that the checkpoint's table of them may be longer.

    Raises:
        WeightsError: before anything is read, for tensors that are missing, left over or misshapen, and for a model with
            weights that are made of others; while reading, for NaN, and for tensors that share a parameter but differ.
    """
    computed = made_of_others(model)
    if computed:
        raise WeightsError(f"{few(computed)}: parametrised or pruned, so that nothing can be read into it; {REMEDY}")
    parameters, rows = tensors_of(model), present(rows, model)
    if any(parameter.is_meta for parameter in parameters.values()):
        raise WeightsError("the model is on the meta device, which holds no numbers: make it on another one, such as 'cpu'")
    found = [(row, find(row, source.tensors, base_prefix)) for row in rows]
    stale = set() if tied else _stale(found, parameters, source)
    found = [(row, None if piece is not None and piece.name in stale else piece) for row, piece in found]
    used = {piece.name for _, piece in found if piece is not None}
    skipped = [name for name in source.tensors if name in stale or (name not in used and matches(name, ignored))]
    aside = [name for name in source.tensors if name not in used and matches(name, kept)]
    over = [name for name in source.tensors if name not in used and name not in skipped and name not in aside]
    for name in source.tensors:
        if name in used or name in aside:
            _check_readable(name, source)
        if name in used:
            _check_dtype(name, source)
    _check_missing(found, parameters, source)
    if over and not leave:
        origin = source.tensors[over[0]].origin
        known = [row.source for row in rows]
        raise WeightsError(
            f"{origin} holds {len(over)} tensors that no part of the model takes: {few(over)}{did_you_mean(over[0], known)}"
        )
    for row, piece in found:
        if piece is not None:
            _check_shape(row, piece, parameters[row.target], source, sizes, crop)
    filled: dict[int, str] = {}
    spare = {name: source.read(name, 0, (*source.tensors[name].shape, 1)[0]).clone() for name in aside}
    for row, piece in found:
        if piece is None:
            continue
        parameter = parameters[row.target]
        if id(parameter) in filled:
            if not _equal(row, piece, parameter, source, sizes):
                _check_numbers(source.read(piece.name, 0, source.tensors[piece.name].shape[0]), piece, source)
                if tied or not row.spare:
                    raise _untied(piece.name, filled[id(parameter)], source)
                spare[row.source] = source.read(piece.name, 0, len(parameter)).clone()
        else:
            _fill(row, piece, parameter, source, sizes)
            _check_numbers(parameter, piece, source)
            filled[id(parameter)] = piece.name
    return LoadReport(len(used), tuple(skipped), tuple(over), spare)


def invert(rows: Iterable[Row], model: nn.Module, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The checkpoint's tensors from the model's parameters, under the rows' own spelling."""
    parameters = tensors_of(model)
    pieces: dict[str, dict[int, Tensor]] = {}
    for row in present(rows, model):
        value = parameters[row.target].detach()
        pieces.setdefault(row.source, {})[row.piece[0]] = _inverted(value, row.pattern, sizes) if row.pattern else value
    return {
        source: found[0] if len(found) == 1 else torch.cat([found[index] for index in sorted(found)])
        for source, found in pieces.items()
    }


def translated(
    rows: Iterable[Row], source: TensorSource, model: nn.Module, sizes: Mapping[str, int]
) -> dict[str, tuple[str, Tensor]]:
    """What a checkpoint holds of a model's tensors, by their names in the model: the checkpoint's key, and the tensor in the
    model's layout.

    Raises:
        WeightsError: for tensors that are misshapen.
    """
    parameters, found = tensors_of(model), {}
    for row in present(rows, model):
        piece = find(row, source.tensors, "")
        if piece is None:
            continue
        parameter = parameters[row.target]
        _check_readable(piece.name, source)
        _check_dtype(piece.name, source)
        _check_shape(row, piece, parameter, source, sizes)
        parts = [values for _, _, values in _chunks(row, piece, parameter, source, sizes)]
        found[row.target] = (piece.name, torch.cat(parts))
    return found


def _stale(found: list[tuple[Row, Piece | None]], parameters: Mapping[str, Tensor], source: TensorSource) -> set[str]:
    """Spare tensors that were not resized with the one that their class computes with."""
    computed = {row.target: piece.name for row, piece in found if piece is not None and not row.spare}
    return {
        piece.name
        for row, piece in found
        if row.spare and piece is not None
        if computed.get(row.target, piece.name) != piece.name
        if source.tensors[piece.name].shape != parameters[row.target].shape
    }


def _check_missing(found: list[tuple[Row, Piece | None]], tensors: Mapping[str, Tensor], source: TensorSource) -> None:
    parameters = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
    found = [(row, piece) for row, piece in found if row.target in parameters]
    reached = {id(parameters[row.target]) for row, piece in found if piece is not None}
    missing = [row.source for row, piece in found if piece is None and id(parameters[row.target]) not in reached]
    missing = list(dict.fromkeys(missing))
    if missing:
        origin = next(iter(source.tensors.values())).origin if source.tensors else "the checkpoint"
        raise WeightsError(f"{origin} lacks {len(missing)} tensors that its configuration calls for: {few(missing)}")
    covered = {id(parameters[row.target]) for row, _ in found}
    bare = [name for name, parameter in parameters.items() if id(parameter) not in covered]
    if bare:
        raise WeightsError(f"the family's table fills no parameter {few(bare)}")


def _check_shape(
    row: Row, piece: Piece, parameter: Tensor, source: TensorSource, sizes: Mapping[str, int], crop: bool = False
) -> None:
    name, info = piece.name, source.tensors[piece.name]
    expected = (piece.count * len(parameter), *parameter.shape[1:])
    if row.pattern:
        expected = tuple(_inverted(torch.empty(parameter.shape, device="meta"), row.pattern, sizes).shape)
    longer = row.crop and info.shape[1:] == expected[1:] and info.shape[:1] > expected[:1]
    if info.shape != expected and not (longer and crop):
        pattern = f", pattern {row.pattern}" if row.pattern else ""
        remedy = f"; correct the configuration, or keep the first positions with n_ctx={sizes['pos']}" if longer else ""
        raise WeightsError(
            f"{info.origin}: {name} has shape {list(info.shape)}, the configuration calls for {list(expected)} "
            f"({row.target}{pattern}){remedy}"
        )


def _check_readable(name: str, source: TensorSource) -> None:
    info = source.tensors[name]
    if info.fault:
        raise WeightsError(f"{info.origin}: {name} {info.fault}")


def _check_dtype(name: str, source: TensorSource) -> None:
    info = source.tensors[name]
    if info.dtype not in DTYPES:
        raise WeightsError(
            f"{info.origin}: {name} has dtype {info.dtype}; weights are floating-point numbers of 16 bits or more. If they are "
            "quantised, take those that they were made from, or dequantise them first"
        )


@torch.no_grad()
def _fill(row: Row, piece: Piece, parameter: Tensor, source: TensorSource, sizes: Mapping[str, int]) -> None:
    direct = not row.pattern and parameter.device.type == "cpu" and source.tensors[piece.name].dtype == parameter.dtype
    if direct:
        source.read_into(piece.name, parameter, piece.index * len(parameter))
        return
    for start, stop, rows in _chunks(row, piece, parameter, source, sizes):
        parameter[start:stop].copy_(rows)


@torch.no_grad()
def _check_numbers(values: Tensor, piece: Piece, source: TensorSource) -> None:
    """Refuse NaN. Minus infinity may be meant: as a bias, it rules an output out."""
    if bool(values.sum().isnan()) and bool(values.isnan().any()):  # the sum is read once, and nothing is made
        raise WeightsError(
            f"{source.tensors[piece.name].origin}: {piece.name} holds NaN ({int(values.isnan().sum()):,} of {values.numel():,} "
            "numbers): it was damaged, or training diverged. Take another copy, or an earlier checkpoint"
        )


def _equal(row: Row, piece: Piece, parameter: Tensor, source: TensorSource, sizes: Mapping[str, int]) -> bool:
    return all(
        same_numbers(parameter.detach()[start:stop], rows)
        for start, stop, rows in _chunks(row, piece, parameter, source, sizes)
    )


def _untied(name: str, other: str, source: TensorSource) -> WeightsError:
    return WeightsError(
        f"{source.tensors[name].origin}: {name} and {other} are tied but differ; if the checkpoint was trained with them "
        "apart, its config.json must say tie_word_embeddings: false"
    )


def _chunks(row: Row, piece: Piece, parameter: Tensor, source: TensorSource, sizes: Mapping[str, int]):
    """(start, stop, values) along the parameter's first axis, a bounded number of bytes at a time."""
    info = source.tensors[piece.name]
    if row.pattern:
        yield 0, len(parameter), _rearranged(source.read(piece.name, 0, info.shape[0]), row.pattern, sizes)
        return
    per_row = max(1, parameter[:1].numel() * info.dtype.itemsize)
    step, skip = max(1, CHUNK_BYTES // per_row), piece.index * len(parameter)
    for start in range(0, len(parameter), step):
        stop = min(start + step, len(parameter))
        yield start, stop, source.read(piece.name, skip + start, skip + stop)


def _rearranged(value: Tensor, pattern: str, sizes: Mapping[str, int]) -> Tensor:
    left = pattern.split("->")[0].replace("(", " ").replace(")", " ").split()
    return rearrange(value, pattern, **{axis: size for axis, size in sizes.items() if axis in left})


def _inverted(value: Tensor, pattern: str, sizes: Mapping[str, int]) -> Tensor:
    left, right = pattern.split("->")
    return _rearranged(value, f"{right} -> {left}", sizes)


def few(names: Sequence[str], most: int = 4) -> str:
    """Names for a message, the first of them if there are many."""
    listed = ", ".join(names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"
