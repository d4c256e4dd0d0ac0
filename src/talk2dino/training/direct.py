"""The recipe's step with its gradients written out: what autograd computes, in fewer operations.

On two CPU cores a tenth of a step is the bookkeeping of autograd. The loss and the gradients of the
published recipe (a tanh MLP, the head closest to the caption, InfoNCE on cosines) have a short
closed form; everything else goes through `talk2dino.training.step`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from talk2dino.alignment import head_choice
from talk2dino.config import TrainConfig
from talk2dino.losses import infonce_and_gradient
from talk2dino.projection import NORM_EPS, Projection, ProjectionLayer, unit
from talk2dino.training.dataset import Batch


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
        inputs, projected = self._forward(batch.text)
        lengths = torch.linalg.vector_norm(projected, dim=1, keepdim=True).clamp_min_(NORM_EPS)
        text = projected.div_(lengths)
        visual = batch.visual if batch.visual_is_unit else unit(batch.visual)
        if visual.ndim == 3:
            visual = head_choice(visual, text, "max_score")
        loss, gradient = infonce_and_gradient(text @ visual.T)
        along = gradient @ visual  # (B, D), of the unit vectors
        radial = (along * text).sum(dim=1, keepdim=True)
        self._backward(inputs, along.addcmul_(text, radial, value=-1).div_(lengths))
        return loss

    def _forward(self, text: Tensor) -> tuple[list[Tensor], Tensor]:
        """The input of every layer, and the output of the last."""
        inputs: list[Tensor] = []
        value = text
        for layer in self.layers:
            inputs.append(value.tanh_() if inputs else value)
            value = torch.addmm(layer.bias, inputs[-1], layer.weight.T)
        return inputs, value

    def _backward(self, inputs: list[Tensor], gradient: Tensor) -> None:
        """From (B, D) the gradient of the last output to those of all weights and biases."""
        for number in reversed(range(len(self.layers))):
            layer = self.layers[number]
            assert layer.weight.grad is not None and layer.bias.grad is not None
            torch.mm(gradient.T, inputs[number], out=layer.weight.grad)
            torch.sum(gradient, dim=0, out=layer.bias.grad)
            if number:
                gradient = gradient @ layer.weight
                gradient = torch.ops.aten.tanh_backward(gradient, inputs[number])
