"""The tables of TransformerLens' state dicts of HookedEncoder and HookedAudioEncoder: one more spelling of the weights."""

from collections.abc import Collection

import encoderlens.families.speech as speech
from encoderlens.weights import Row, expand


def _affine(source: str, target: str, weight: str, out: str) -> tuple[Row, ...]:
    """A matrix that TransformerLens keeps as [d_model out], and its bias."""
    return Row(f"{source}.{weight}", f"{target}.weight", f"d_model {out} -> {out} d_model"), Row(
        f"{source}.b", f"{target}.bias"
    )


def _norm(name: str) -> tuple[Row, ...]:
    return Row(f"{name}.w", f"{name}.w"), Row(f"{name}.b", f"{name}.b")


def _heads(letter: str) -> tuple[Row, ...]:
    source, target = "blocks.{l}.attn", f"blocks.{{l}}.attn.{letter.lower()}"
    return (
        Row(f"{source}.W_{letter}", f"{target}.weight", "head d_model d_head -> (head d_head) d_model"),
        Row(f"{source}.b_{letter}", f"{target}.bias", "head d_head -> (head d_head)"),
    )


BLOCKS = (
    *_heads("Q"),
    *_heads("K"),
    *_heads("V"),
    Row("blocks.{l}.attn.W_O", "blocks.{l}.attn.o.weight", "head d_head d_model -> d_model (head d_head)"),
    Row("blocks.{l}.attn.b_O", "blocks.{l}.attn.o.bias"),
    *_norm("blocks.{l}.ln1"),
    Row("blocks.{l}.mlp.W_in", "blocks.{l}.mlp.input.weight", "d_model d_mlp -> d_mlp d_model"),
    Row("blocks.{l}.mlp.b_in", "blocks.{l}.mlp.input.bias"),
    Row("blocks.{l}.mlp.W_out", "blocks.{l}.mlp.output.weight", "d_mlp d_model -> d_model d_mlp"),
    Row("blocks.{l}.mlp.b_out", "blocks.{l}.mlp.output.bias"),
    *_norm("blocks.{l}.ln2"),
)
TEXT = (
    Row("embed.embed.W_E", "embed.embed.weight"),
    Row("embed.pos_embed.W_pos", "embed.pos_embed.weight"),
    Row("embed.token_type_embed.W_token_type", "embed.token_type_embed.weight"),
    *_norm("embed.ln"),
    *_affine("mlm_head", "mlm_head.dense", "W", "out"),
    *_norm("mlm_head.ln"),
    Row("unembed.W_U", "unembed.weight", "d_model d_vocab -> d_vocab d_model"),
    Row("unembed.b_U", "unembed.bias"),
    *_affine("pooler", "pooler.dense", "W", "out"),
    *_affine("nsp_head", "nsp_head.dense", "W", "label"),
)
HEADS = {"masked_lm": {"mlm_head", "unembed"}, "next_sentence": {"nsp_head"}}  # and their modules
# The audio class held a whole Hugging Face base model, of which it ran all but the layers.
HF_MODEL = "hubert_model."
AUDIO = (
    *(row for row in speech.encoder_rows(HF_MODEL) if not row.target.startswith("blocks.")),
    Row(f"{HF_MODEL}masked_spec_embed", "embed.mask_embed"),
)
IN_FRONT_AND_BEHIND = {"text": TEXT, "audio": AUDIO}
IGNORED = ("*.attn.mask", "*.attn.IGNORE", f"{HF_MODEL}encoder.layers.*", f"{HF_MODEL}*num_batches_tracked")
EPS = 1e-5  # what its configuration says of eps when it is left out


def parts_in(names: Collection[str]) -> tuple[tuple[str, ...], bool]:
    """The tasks of the heads of which a state dict of its text class holds any tensor, and whether there is a pooler."""
    modules = {name.split(".")[0] for name in names}
    heads = tuple(task for task, own in HEADS.items() if modules & own)
    return heads, "pooler" in modules or "next_sentence" in heads


def rows(modality: str, n_layers: int, n_convs: int) -> list[Row]:
    """The table of its text or its audio class, expanded over layers and convolutions."""
    return expand((*IN_FRONT_AND_BEHIND[modality], *BLOCKS), {layer: str(layer) for layer in range(n_layers)}, n_convs)
