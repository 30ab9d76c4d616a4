"""The MLP of a block, plain and gated."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components.activations import Activation, GatedActivation
from encoderlens.components.effective import effective, effective_bias
from encoderlens.components.linear import Linear, WeightView
from encoderlens.components.residual import Writer
from encoderlens.hook_points import HookPoint
from encoderlens.shapes import Neurons, Stream


class NeuronWriter(Writer):
    """What plain and gated MLPs share: neurons that each write a row of ``W_out``."""

    part, parts_axis, bias_name = "N", -1, "b_out"

    W_in = WeightView("input.weight", "d_mlp d_model -> d_model d_mlp")
    b_in = WeightView("input.bias")
    W_out = WeightView("output.weight", "d_model d_mlp -> d_mlp d_model")
    b_out = WeightView("output.bias")

    dropout: float
    input: Linear
    output: Linear
    hook_post: HookPoint

    def write(self, post: Neurons) -> Stream:
        """What the neurons write, with dropout on them in training."""
        return self.output(F.dropout(post, self.dropout, self.training))

    @property
    def parts_point(self) -> HookPoint:
        return self.hook_post

    @property
    def out_layer(self) -> nn.Module:
        return self.output

    @property
    def out_weight(self) -> Float[Tensor, "d_mlp d_model"]:
        return self.W_out

    @property
    def out_bias(self) -> Float[Tensor, " d_model"] | None:
        return effective_bias(self.output)

    def spread(self, activation: Neurons, weight: Float[Tensor, "d_mlp out"]) -> Float[Tensor, "*rows d_mlp out"]:
        return activation.unsqueeze(-1) * weight

    def dot(self, activation: Neurons, gradient: Stream) -> Neurons:
        return activation * (gradient @ effective(self.output))


class MLP(NeuronWriter):
    """``act(x W_in + b_in) W_out + b_out``."""

    def __init__(self, d_mlp: int, act_fn: str, dropout: float, bias: bool, d_model: int) -> None:
        super().__init__()
        self.dropout = dropout
        self.act_fn = Activation(act_fn)
        self.input = Linear(d_model, d_mlp, bias)
        self.output = Linear(d_mlp, d_model, bias)
        self.hook_in = HookPoint("batch pos d_model")
        self.hook_pre = HookPoint("batch pos d_mlp")
        self.hook_post = HookPoint("batch pos d_mlp")

    def forward(self, x: Stream) -> Stream:
        pre = self.hook_pre(self.input(self.hook_in(x)))
        return self.write(self.hook_post(self.act_fn(pre)))


class GatedMLP(NeuronWriter):
    """``(act(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out`` (Shazeer 2020)."""

    W_gate = WeightView("gate.weight", "d_mlp d_model -> d_model d_mlp")
    b_gate = WeightView("gate.bias")

    def __init__(self, d_mlp: int, act_fn: str, dropout: float, bias: bool, d_model: int) -> None:
        super().__init__()
        self.dropout = dropout
        self.act_fn = GatedActivation(act_fn)
        self.gate = Linear(d_model, d_mlp, bias)
        self.input = Linear(d_model, d_mlp, bias)
        self.output = Linear(d_mlp, d_model, bias)
        self.hook_in = HookPoint("batch pos d_model")
        self.hook_pre = HookPoint("batch pos d_mlp")
        self.hook_pre_linear = HookPoint("batch pos d_mlp")
        self.hook_post = HookPoint("batch pos d_mlp")

    def forward(self, x: Stream) -> Stream:
        x = self.hook_in(x)
        gate, linear = self.hook_pre(self.gate(x)), self.hook_pre_linear(self.input(x))
        return self.write(self.hook_post(self.act_fn(gate, linear)))
