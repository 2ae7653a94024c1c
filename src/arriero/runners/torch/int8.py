"""Linear layers with int8 weights for the CPU.

Every row of a weight matrix has a scale, and so has every token's activation vector, found as it comes. The products
are exact integers, so a token's result does not depend on what shares its call. bitsandbytes, which is asked on CUDA
devices, leaves the head as it is, and so does this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer of int8 weights [out, in], a scale for each output and an optional bias."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """`weight` [out, in] and `bias` [out] are numbers of any kind."""
        super().__init__()
        weight = weight.detach().float()
        scales = (weight.abs().amax(dim=1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", torch.round(weight / scales[:, None]).to(torch.int8))
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Float [..., in] to [..., out]."""
        rows = inputs.reshape(-1, self.in_features).float()
        scales = (rows.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        products = torch._int_mm(torch.round(rows / scales).to(torch.int8), self.weight.t())
        outputs = products.float() * scales * self.scales
        if self.bias is not None:
            outputs += self.bias
        return outputs.reshape(*inputs.shape[:-1], self.out_features).to(inputs.dtype)


def to_int8(model: Any) -> None:
    """Replace every linear layer of a model but its head, one after the other; the rest becomes float32."""
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if child is head:
                continue
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child.weight, child.bias))
            elif isinstance(child, Conv1D):
                setattr(module, name, Int8Linear(child.weight.t(), child.bias))
    model.float()
