"""The grammar of hook names and of row labels: short and full names, filters over them, and suggestions for misspelt ones."""

import difflib
import re
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from reprlib import repr as short_repr
from typing import Any

from encoderlens.errors import EncoderLensError, HookNameError, InputError

NamesFilter = str | Collection[str] | Callable[[str], bool] | None

_EMBED = ("embed", "pos_embed", "token_type_embed")
_NORM = ("scale", "normalized")
_NORM_PLACES = {"projection": "projection.ln", "embed": "embed.ln", "mlm_head": "mlm_head.ln", "ln_final": "ln_final"}
_PARENT_OF = {
    **dict.fromkeys(("q", "k", "v", "rot_q", "rot_k", "z", "result"), "attn."),
    **dict.fromkeys(("rel_bias", "c2p", "p2c", "attn_scores", "pattern"), "attn."),
    **dict.fromkeys(("in", "pre", "pre_linear", "post"), "mlp."),
    **dict.fromkeys(("resid_pre", "resid_mid", "resid_post", "block_out", "attn_out", "mlp_in", "mlp_out"), ""),
    **dict.fromkeys(("q_input", "k_input", "v_input", "normalized_resid_mid", "normalized_resid_post"), ""),
    **dict.fromkeys(("conv_out", "resid_conv", "normalized_resid_conv"), ""),
}
_ALIASES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "query": "q",
    "key": "k",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_post": "post",
}
_COMPACT = re.compile(r"([a-z_]*[a-z])(\d+)(ln1|ln2)?")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """The full hook name of a short one: ``("q", 0)``, ``"q0"``, ``("scale", 2, "ln1")``, ``"scale2ln1"``, ``"embed"``.

    A full name (with a dot, or starting with ``hook_``) is returned as it is.

    Raises:
        HookNameError: for a short name that is not in the grammar, or one whose layer is missing.
    """
    if "." in name or name.startswith("hook_"):
        return name
    compact = _COMPACT.fullmatch(name)
    if compact and layer is None:
        name, layer, layer_type = compact[1], int(compact[2]), compact[3] or layer_type
    name = _ALIASES.get(name, name)
    if layer is not None and name in (*_EMBED, "full_embed"):
        raise HookNameError(f"{name!r} stands in front of the blocks: leave the layer out")
    if name == "full_embed":
        return "hook_full_embed"
    if name in _EMBED:
        return f"embed.hook_{name}"
    if name in _NORM:
        return _norm_name(name, layer, layer_type)
    if name not in _PARENT_OF:
        known = [*_PARENT_OF, *_ALIASES, *_EMBED, *_NORM, "full_embed"]
        raise HookNameError(f"no activation is called {name!r}{did_you_mean(name, known)}")
    if layer is None:
        raise HookNameError(f"{name!r} is an activation of a block: give its layer, as in ({name!r}, 0) or '{name}0'")
    return f"blocks.{layer}.{_PARENT_OF[name]}hook_{name}"


def _norm_name(name: str, layer: int | None, layer_type: str | None) -> str:
    if layer is None:
        place = _NORM_PLACES.get(layer_type or "ln_final")
    else:
        place = f"blocks.{layer}.{layer_type}" if layer_type in ("ln1", "ln2") else None
    if place is None:
        raise HookNameError(
            f"{name!r} of which norm? Give a layer with 'ln1' or 'ln2', as in ({name!r}, 0, 'ln1'), or no layer and one of "
            f"{', '.join(map(repr, _NORM_PLACES))}"
        )
    return f"{place}.hook_{name}"


def block_of(name: str) -> int | None:
    """The layer of a hook name, or None for one outside the blocks."""
    match = _BLOCK.match(name)
    return int(match[1]) if match else None


def part_label(part: str, layer: int, index: int) -> str:
    """The row label of a head (``"L0H1"``) or a neuron (``"L0N17"``)."""
    return f"L{layer}{part}{index}"


def head_label(layer: int, head: int) -> str:
    return part_label("H", layer, head)


def write_label(hook_name: str) -> str:
    """The row label of what passes a hook point: ``"0_attn_out"`` at ``blocks.0.hook_attn_out``; ``"pos_embed"``."""
    return in_block(block_of(hook_name), hook_name.rpartition("hook_")[2])


def norm_label(hook_name: str) -> str:
    """The row label of a norm's bias, by a hook point of the norm: ``"0_ln1_b"``, ``"embed_ln_b"``, ``"ln_final_b"``."""
    layer, path = block_of(hook_name), hook_name.rpartition(".hook_")[0]
    return in_block(layer, f"{_BLOCK.sub('', path).replace('.', '_')}_b")


def stream_label(layer: int, mid: bool, n_layers: int) -> str:
    """The label of the stream that enters a layer (``"0_pre"``; for ``n_layers``, ``"final_post"``), or ``"0_mid"``."""
    return "final_post" if layer == n_layers else f"{layer}_{'mid' if mid else 'pre'}"


def in_block(layer: int | None, label: str) -> str:
    """A row label with its layer in front, if it has one: ``"0_b_O"``."""
    return label if layer is None else f"{layer}_{label}"


def check_word(what: str, value: Any, known: Collection[Any], error: type[EncoderLensError] = InputError) -> None:
    """Refuse what is none of a closed set of words.

    Args:
        what: what is chosen, for the message.
        known: the words; None may be among them.
        error: what to raise.

    Raises:
        EncoderLensError: of that class, with the words, and those that could be meant.
    """
    for word in known:
        if value is word or (isinstance(value, str) and value == word):
            return
    shown = [repr(word) for word in known]
    choice = f"one of {', '.join(shown)}"
    if len(shown) < 4:
        choice = " or ".join([", ".join(shown[:-1]), shown[-1]][len(shown) == 1 :])
    raise error(f"{what}={short_repr(value)} is unknown; it is {choice}{did_you_mean(value, known)}")


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """``"; did you mean 'a' or 'b'?"``, or nothing when no known word is close, or there is no word."""
    words = [other for other in known if isinstance(other, str)]
    close = difflib.get_close_matches(word, words, n=3, cutoff=0.6) if isinstance(word, str) else []
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def matching(patterns: Iterable[str], names: Collection[str], default: Collection[str]) -> list[str]:
    """The hook points that patterns stand for, in their order: full names, globs (``"blocks.*.hook_resid_post"``), and short
    names, which stand for every layer without one (``"pattern"``) and for one with it (``"q0"``).

    Args:
        patterns: what is wanted.
        names: every hook point.
        default: those that are computed unasked; a glob selects others only if it matches none of these.

    Raises:
        HookNameError: for a pattern that stands for none.
    """
    found: set[str] = set()
    for pattern in patterns:
        found.update(_matches(pattern, names, default))
    return [name for name in names if name in found]


def _matches(pattern: str, names: Collection[str], default: Collection[str]) -> list[str]:
    if pattern in names:
        return [pattern]
    if any(letter in pattern for letter in "*?["):
        wide = [name for name in names if fnmatchcase(name, pattern)]
        chosen = [name for name in wide if name in default] or wide
        if not chosen:
            raise HookNameError(f"no hook point matches {pattern!r}")
        return chosen
    if "." in pattern or pattern.startswith("hook_"):
        raise HookNameError(f"there is no hook point {pattern!r}{did_you_mean(pattern, names)}")
    return _short_matches(pattern, names)


def _short_matches(short: str, names: Collection[str]) -> list[str]:
    """The hook points of a short name: in its layer, or at every place that has one of that name."""
    compact = _COMPACT.fullmatch(short)
    if compact:
        name = act_name(short)
        if name not in names:
            raise HookNameError(f"there is no hook point {name!r}{did_you_mean(name, names)}")
        return [name]
    last = f"hook_{_ALIASES.get(short, short)}"
    chosen = [name for name in names if name.rpartition(".")[2] == last]
    if not chosen:
        known = {name.rpartition("hook_")[2] for name in names} | set(_ALIASES)
        raise HookNameError(f"no hook point is called {short!r}{did_you_mean(short, sorted(known))}")
    return chosen


def select(names_filter: NamesFilter, names: Collection[str]) -> list[str]:
    """What a filter selects out of ``names``, in their order. None selects all.

    Raises:
        HookNameError: for a name that is not there, or a filter that selects nothing.
    """
    if names_filter is None:
        return list(names)
    if callable(names_filter):
        chosen = [name for name in names if names_filter(name)]
        if not chosen:
            raise HookNameError(f"the names filter {names_filter!r} selects none of the {len(names)} hook points")
        return chosen
    if not isinstance(names_filter, str | Collection):
        raise HookNameError(f"a names filter is a name, a collection of names or a function of a name, not {names_filter!r}")
    wanted = {names_filter} if isinstance(names_filter, str) else set(names_filter)
    if not wanted:
        raise HookNameError("the names filter is empty: leave it out to select every hook point")
    for name in sorted(wanted, key=str):
        if not isinstance(name, str):
            raise HookNameError(f"a names filter holds names, not {name!r}; get_act_name gives the name of a short one")
        if name not in names:
            raise HookNameError(f"there is no hook point {name!r}{did_you_mean(name, names)}")
    return [name for name in names if name in wanted]
