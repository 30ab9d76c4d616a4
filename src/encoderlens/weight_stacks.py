"""WeightStacks: the weights of all layers under TransformerLens' names and shapes."""

from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components.block import Block
from encoderlens.factored_matrix import FactoredMatrix
from encoderlens.hooked_root_module import HookedRootModule
from encoderlens.names import head_label


class WeightStacks(HookedRootModule):
    """A model with blocks, and their weights as stacks over layers.

    Attributes:
        blocks: the layers.
    """

    blocks: nn.ModuleList

    def _layers(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query weights of all layers: a differentiable copy. Edit ``blocks[l].attn.W_Q`` in place, under ``no_grad``."""
        return torch.stack([block.attn.W_Q for block in self._layers()])

    @property
    def W_K(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        """Key weights of all layers: a differentiable copy. Edit ``blocks[l].attn.W_K`` in place, under ``no_grad``."""
        return torch.stack([block.attn.W_K for block in self._layers()])

    @property
    def W_V(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        """Value weights of all layers: a differentiable copy. Edit ``blocks[l].attn.W_V`` in place, under ``no_grad``."""
        return torch.stack([block.attn.W_V for block in self._layers()])

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Output weights of attention: a differentiable copy. Edit ``blocks[l].attn.W_O`` in place, under ``no_grad``."""
        return torch.stack([block.attn.W_O for block in self._layers()])

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """Input weights of the MLPs: a differentiable copy. Edit ``blocks[l].mlp.W_in`` in place, under ``no_grad``."""
        return torch.stack([block.mlp.W_in for block in self._layers()])

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """Output weights of the MLPs: a differentiable copy. Edit ``blocks[l].mlp.W_out`` in place, under ``no_grad``."""
        return torch.stack([block.mlp.W_out for block in self._layers()])

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """Query biases of all layers: a differentiable copy. Edit ``blocks[l].attn.b_Q`` in place, under ``no_grad``."""
        return torch.stack([block.attn.b_Q for block in self._layers()])

    @property
    def b_K(self) -> Float[Tensor, "layer kv_head d_head"]:
        """Key biases of all layers: a differentiable copy. Edit ``blocks[l].attn.b_K`` in place, under ``no_grad``."""
        return torch.stack([block.attn.b_K for block in self._layers()])

    @property
    def b_V(self) -> Float[Tensor, "layer kv_head d_head"]:
        """Value biases of all layers: a differentiable copy. Edit ``blocks[l].attn.b_V`` in place, under ``no_grad``."""
        return torch.stack([block.attn.b_V for block in self._layers()])

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """Output biases of attention: a differentiable copy. Edit ``blocks[l].attn.b_O`` in place, under ``no_grad``."""
        return torch.stack([block.attn.b_O for block in self._layers()])

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """Input biases of the MLPs: a differentiable copy. Edit ``blocks[l].mlp.b_in`` in place, under ``no_grad``."""
        return torch.stack([block.mlp.b_in for block in self._layers()])

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """Output biases of the MLPs: a differentiable copy. Edit ``blocks[l].mlp.b_out`` in place, under ``no_grad``."""
        return torch.stack([block.mlp.b_out for block in self._layers()])

    def per_head(self, name: Literal["W_K", "W_V", "b_K", "b_V"]) -> Float[Tensor, "layer head *d_model d_head"]:
        """Key or value weights, or biases, of all layers with one for each head, where heads share them: a copy."""
        return self._layers()[0].attn.per_head(getattr(self, name), 1)

    @property
    def QK(self) -> FactoredMatrix:
        """``W_Q W_K^T`` of every head [layer head d_model d_model], unscaled and without biases. What relative positions add to
        scores is not in it.

        Raises:
            AnalysisError: for rotary attention, where the product depends on how far apart two positions are.
        """
        for block in self._layers():
            block.attn.check_bilinear()
        return FactoredMatrix(self.W_Q, self.per_head("W_K").mT)

    @property
    def OV(self) -> FactoredMatrix:
        """``W_V W_O`` of every head [layer head d_model d_model]."""
        return FactoredMatrix(self.per_head("W_V"), self.W_O)

    def all_head_labels(self) -> list[str]:
        """``["L0H0", "L0H1", …]``."""
        return [head_label(layer, head) for layer, block in enumerate(self._layers()) for head in range(block.attn.n_heads)]
