"""DARTS (Liu, Simonyan, Yang, "DARTS: Differentiable Architecture Search", ICLR 2019), first and second order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.nn.supernet import Precision, in_precision
from fastnas.strategies.context import SearchContext
from fastnas.strategies.gradient import GradientStrategy, gradients
from fastnas.strategies.registry import register_strategy

Loss = Callable[[Sequence[Tensor]], Tensor]
"""The loss as a function of the weights ω; it depends on α, too."""


def second_order_gradients(
    alphas: Sequence[Tensor],
    weights: Sequence[Tensor],
    momenta: Sequence[Tensor | None],
    train_loss: Loss,
    valid_loss: Loss,
    *,
    rate: float,
    momentum: float,
    weight_decay: float,
    scale: float = 1.0,
    shifted_loss: Loss | None = None,
    mean: Callable[[Sequence[Tensor]], list[Tensor]] = list,
) -> list[Tensor]:
    """∂L_val(ω', α)/∂α where ω' is ω after one step on L_train (equations 7 and 8).

    The product with ∂²L_train/∂α∂ω is a central difference over ±0.01/‖v‖ along v = ∂L_val/∂ω'. The virtual step is not
    clipped.

    Args:
        alphas, weights: α and ω, which require gradients.
        momenta: SGD's momentum buffer of each weight; None where it has none yet.
        train_loss, valid_loss: the two losses.
        rate: ξ, step size of the virtual step.
        momentum, weight_decay: of the virtual step.
        scale: of losses on their way back, see `gradients`.
        shifted_loss: train_loss where the difference of its gradients is taken, which are nearly equal: in float32,
            where train_loss has a lower precision. None for train_loss.
        mean: of gradients, over processes that each see a part of the images.

    Returns:
        The gradient of each of `alphas`.
    """
    step = mean(gradients(train_loss(weights), weights, scale))
    moved = []
    for weight, gradient, buffer in zip(weights, step, momenta, strict=True):
        velocity = gradient + weight_decay * weight.detach()
        if buffer is not None:
            velocity = velocity + momentum * buffer
        moved.append((weight.detach() - rate * velocity).requires_grad_())  # ω'
    found = mean(gradients(valid_loss(moved), [*alphas, *moved], scale))
    direct, direction = found[: len(alphas)], found[len(alphas) :]  # direction: v
    radius = 0.01 / torch.sqrt(sum((v.square().sum() for v in direction), torch.zeros_like(direction[0].sum())))
    sides = []
    for sign in (1.0, -1.0):
        shifted = [(w.detach() + sign * radius * v) for w, v in zip(weights, direction, strict=True)]  # ω±
        sides.append(mean(gradients((shifted_loss or train_loss)(shifted), alphas, scale)))
    return [g - rate * (plus - minus) / (2 * radius) for g, plus, minus in zip(direct, *sides, strict=True)]


@register_strategy
@dataclass
class DARTS(GradientStrategy):
    """DARTS: before each weight step, Adam updates α on a batch of the α half."""

    name: ClassVar[str] = "darts"

    order: Literal[1, 2] = 2
    """2: look one weight step ahead (four forward and backward passes); 1: use the weights as they are."""

    def alpha_gradients(self, search: SearchContext) -> list[Tensor]:
        if self.order == 1:
            return super().alpha_gradients(search)
        network = search.network
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        keys = [names[id(parameter)] for parameter in search.weight_parameters]
        # Looking ahead leaves the running statistics alone.
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        momenta = [search.optimizer.state[p].get("momentum_buffer") for p in search.weight_parameters]
        (group,) = search.optimizer.param_groups

        def loss_on(batch: tuple[Tensor, Tensor], alpha_counts: bool, precision: Precision) -> Loss:
            images, labels = batch

            def loss(weights: Sequence[Tensor]) -> Tensor:
                replaced = {**buffers, **dict(zip(keys, weights, strict=True))}
                arch_weights = self.arch_weights(search, int(alpha_counts))
                with in_precision(network, precision):
                    logits = torch.func.functional_call(network, replaced, (images,), arch_weights)
                if alpha_counts:
                    return self.logged_alpha_loss(search, logits, labels)
                return F.cross_entropy(logits, labels)

            return loss

        return second_order_gradients(
            self.alpha_parameters,
            search.weight_parameters,
            momenta,
            loss_on(search.batch, False, network.precision),
            loss_on(self.alpha_batch(search), True, network.precision),
            rate=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            scale=search.loss_scale,
            shifted_loss=loss_on(search.batch, False, "float32"),
            mean=search.world.means,
        )
