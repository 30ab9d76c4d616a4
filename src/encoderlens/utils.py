"""Small helpers under the names that TransformerLens users know."""

import numpy as np
import torch
from torch import Tensor

from encoderlens.devices import default_device as get_device
from encoderlens.names import act_name as get_act_name
from encoderlens.slices import Slice as Slice
from encoderlens.slices import SliceInput as SliceInput


def to_numpy(tensor: Tensor | np.ndarray | list | tuple | float | int | bool) -> np.ndarray:
    """Anything numeric as a numpy array, detached and on the CPU; bfloat16 becomes float32."""
    if not isinstance(tensor, Tensor):
        return np.asarray(tensor)
    values = tensor.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


__all__ = ["Slice", "SliceInput", "get_act_name", "get_device", "to_numpy"]
