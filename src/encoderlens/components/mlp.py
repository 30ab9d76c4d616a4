"""The MLP of a block."""

from encoderlens.components.activations import activation
from encoderlens.components.linear import Component, Linear, WeightView
from encoderlens.hook_points import HookPoint
from encoderlens.shapes import Stream


class MLP(Component):
    """``act(x W_in + b_in) W_out + b_out``."""

    W_in = WeightView("input.weight", "d_mlp d_model -> d_model d_mlp")
    b_in = WeightView("input.bias")
    W_out = WeightView("output.weight", "d_model d_mlp -> d_mlp d_model")
    b_out = WeightView("output.bias")

    def __init__(self, d_mlp: int, act_fn: str, d_model: int) -> None:
        super().__init__()
        self.act_fn = activation(act_fn)
        self.input = Linear(d_model, d_mlp)
        self.output = Linear(d_mlp, d_model)
        self.hook_in = HookPoint("batch pos d_model")
        self.hook_pre = HookPoint("batch pos d_mlp")
        self.hook_post = HookPoint("batch pos d_mlp")

    def forward(self, x: Stream) -> Stream:
        pre = self.hook_pre(self.input(self.hook_in(x)))
        return self.output(self.hook_post(self.act_fn(pre)))
