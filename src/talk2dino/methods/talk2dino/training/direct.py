"""The recipe's step with its gradients written out: what autograd computes, in fewer operations.

On two CPU cores a tenth of a step is the bookkeeping of autograd. The loss and the gradients of the
published recipe (a tanh MLP, the head closest to the caption, InfoNCE on cosines) have a short
closed form; everything else goes through `talk2dino.methods.talk2dino.training.step`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.config import TrainConfig
from talk2dino.methods.talk2dino.alignment import head_choice
from talk2dino.methods.talk2dino.losses import infonce_and_gradient
from talk2dino.methods.talk2dino.projection import NORM_EPS, Projection, ProjectionLayer, unit
from talk2dino.methods.talk2dino.training.dataset import Batch


def is_direct(model: Projection, train: TrainConfig) -> bool:
    """Whether `DirectStep` computes the gradients of this training."""
    config = model.config
    return (
        type(model) is ProjectionLayer
        and train.ltype == "infonce"
        and config.act == "tanh"
        and config.cosine
        and config.weight_attn_heads is None
        and config.alignment_strategy == "max_score"
        and all(parameter.requires_grad for parameter in model.parameters())
    )


class DirectStep:
    """Loss and gradients of a `ProjectionLayer`; see `is_direct`."""

    def __init__(self, model: ProjectionLayer) -> None:
        self.layers = [model.linear_layer, *model.hidden_layers]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """The loss; the gradients are in `.grad` of the parameters, whatever was there before.

        Args:
            batch: (B, E) captions and (B, H, D) or (B, D) images.
        """
        inputs, text = self._forward(batch.text)
        visual = batch.visual if batch.visual_is_unit else unit(batch.visual)
        if visual.ndim == 3:
            visual = head_choice(visual, text, "max_score")  # does not depend on the lengths
        # The text is left as long as it is: its lengths enter through (B, B) instead of (B, D).
        lengths = torch.linalg.vector_norm(text, dim=1, keepdim=True).clamp_min_(NORM_EPS)
        scores = (text @ visual.T).div_(lengths)
        loss, by_score = infonce_and_gradient(scores)
        radial = (by_score * scores).sum(dim=1, keepdim=True).div_(lengths).div_(lengths)
        gradient = by_score.div_(lengths) @ visual
        self._backward(inputs, gradient.addcmul_(text, radial, value=-1))
        return loss

    def _forward(self, text: Tensor) -> tuple[list[Tensor], Tensor]:
        """The input of every layer, and the output of the last."""
        inputs: list[Tensor] = []
        value = text
        for layer in self.layers:
            inputs.append(value.tanh_() if inputs else value)
            value = linear(inputs[-1], layer.weight, layer.bias)
        return inputs, value

    def _backward(self, inputs: list[Tensor], gradient: Tensor) -> None:
        """From (B, D) the gradient of the last output to those of all weights and biases."""
        for number in reversed(range(len(self.layers))):
            layer = self.layers[number]
            assert layer.weight.grad is not None and layer.bias.grad is not None
            layer.weight.grad = linear(gradient.T, inputs[number].T)
            torch.sum(gradient, dim=0, out=layer.bias.grad)
            if number:
                gradient = linear(gradient, layer.weight.T)
                gradient = torch.ops.aten.tanh_backward(gradient, inputs[number])


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of float32 matrices on a CPU, by oneDNN where PyTorch has its operator.

    PyTorch gives float32 products to MKL; on AMD's processors oneDNN takes a tenth to a quarter
    less time for the sizes of this training.
    """
    if _ONEDNN is None:
        return F.linear(rows, weight, bias)
    product: Tensor = _ONEDNN(rows, weight, bias, "none", [], "")
    return product


def _onednn_linear() -> Any:
    """The operator that compiled models use, or None: it is not part of PyTorch's public API."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_ONEDNN = _onednn_linear()
