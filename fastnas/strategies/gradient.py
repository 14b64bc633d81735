"""What the gradient strategies share: the optimizer of α, and its step on a batch of the α half before each weight
step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.genotype import AnyGenotype
from fastnas.nn.batch_norm import check_one_image
from fastnas.nn.supernet import OpWeights
from fastnas.optimizer_state import load_optimizer
from fastnas.option_types import CountOrZero, NotNegative, ShareBelowOne
from fastnas.spaces.cell_space import Derivation
from fastnas.strategies.base import Strategy, Work
from fastnas.strategies.context import SearchContext


@dataclass
class GradientStrategy(Strategy):
    """Base of the strategies that differentiate α: Adam on the loss of a validation batch, first order.

    A subclass may change what the network computes (`mean_arch_weights`, `arch_weights`), the loss of α (`alpha_loss`),
    or what else is optimised with α (`extra_parameters`).
    """

    published_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weights": {"epochs": 50, "learning_rate": 0.025, "learning_rate_min": 0.001},
        "data": {"batch_size": 64},
        "network": {"channels": 16, "layers": 8, "partial_channels": 1},
    }

    alpha_learning_rate: NotNegative = 3e-4
    """Learning rate of Adam for α."""
    alpha_beta1: ShareBelowOne = 0.5
    """β₁ of Adam for α; β₂ is 0.999."""
    alpha_weight_decay: NotNegative = 1e-3
    """Weight decay (L2 penalty) of α."""
    warm_up: CountOrZero = 0
    """Epochs before α moves for the first time."""
    derive: Derivation = "top2"
    """What a node of the genotype keeps. top2: its two strongest edges with the best candidate of each (DARTS); pairs:
    the two strongest pairs of edge and candidate (GDAS); edges: every edge with its best candidate, which may be none
    (SNAS). In nb201 it is always every edge."""

    def check_epochs(self, epochs: int) -> None:
        if self.warm_up >= epochs:
            raise UserError(
                f"warm_up is {self.warm_up} epochs, but the search has {epochs}: α would never move. Lower the "
                "warm-up or raise the epochs."
            )

    def work(self, epoch: int, epochs: int) -> Work | None:
        """A step of α before each weight step, after the warm-up."""
        return Work(steps=epoch >= self.warm_up)

    def start(self, search: SearchContext) -> None:
        self._search = search
        self._losses: dict[str, Any] = {}  # sums of the terms of α's loss in the epoch in progress, [] float64
        self._losses_steps = 0
        images, world = len(search.valid_pipeline.indices), search.world
        batch_size = min(search.weight_pipeline.batch_size, images - images % world.size or images)
        self._pipeline = search.alpha_pipeline(batch_size).part(world.rank, world.size)
        if self._pipeline.batch_size == 1:
            source = search.weight_pipeline.source
            advice = "give --batch-size 2 or more for each process, and --split so that as many images are left for α"
            check_one_image(search.network, (source.channels, *source.image_size), advice)
        self._optimize(search)

    def _optimize(self, search: SearchContext) -> None:
        self.alpha_parameters = [*search.network.alphas.values(), *self.extra_parameters(search)]
        self.alpha_optimizer = self.make_alpha_optimizer()

    def make_alpha_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            self.alpha_parameters,
            lr=self.alpha_learning_rate,
            betas=(self.alpha_beta1, 0.999),
            weight_decay=self.alpha_weight_decay,
        )

    def extra_parameters(self, search: SearchContext) -> list[nn.Parameter]:
        """What is optimised together with α."""
        return []

    # --- what the network computes ---

    def mean_arch_weights(self, search: SearchContext) -> dict[str, Any]:
        """The architecture as arguments of the network: "op_weights", if need be "edge_weights" and "active".
        Deterministic, and differentiable in α."""
        return {"op_weights": search.network.op_weights()}

    def arch_weights(self, search: SearchContext, draw: int) -> dict[str, Any]:
        """The same for one step, where it may be sampled: draw 0 is for the weight step, draw 1 for the step of α."""
        return self.mean_arch_weights(search)

    def logits(self, search: SearchContext, images: Tensor) -> Tensor:
        with torch.no_grad():  # a weight step leaves α alone
            arch_weights = self.arch_weights(search, 0)
        return search.network(images, **arch_weights)

    def mean_op_weights(self, search: SearchContext) -> OpWeights:
        return self.mean_arch_weights(search)["op_weights"]

    def validation_logits(self, search: SearchContext, images: Tensor) -> Tensor:
        return search.network(images, **self.mean_arch_weights(search))

    def genotype(self, search: SearchContext) -> AnyGenotype:
        return search.network.space.derive(self.mean_op_weights(search), self.derive)

    def alpha_loss(self, search: SearchContext, logits: Tensor, labels: Tensor) -> Tensor | Mapping[str, Tensor]:
        """What α minimises: [B, classes], [B] → [], or the terms that are added up, by name."""
        return F.cross_entropy(logits, labels)

    def logged_alpha_loss(self, search: SearchContext, logits: Tensor, labels: Tensor) -> Tensor:
        """`alpha_loss` as one number [], which joins the means that the event "alpha" of the epoch has."""
        loss = self.alpha_loss(search, logits, labels)
        terms = loss if isinstance(loss, Mapping) else {"loss": loss}
        self.log_terms(terms)
        return torch.stack(list(terms.values())).sum()

    def log_terms(self, terms: Mapping[str, Tensor]) -> None:
        """Adds the terms of a step of α, [] each, to the means of the epoch."""
        found = self._search.world.means([term.detach().double() for term in terms.values()])
        for name, term in zip(terms, found, strict=True):
            self._losses[name] = self._losses.get(name, 0.0) + term
        self._losses_steps += 1

    # --- how α moves ---

    def alpha_batch(self, search: SearchContext) -> tuple[Tensor, Tensor]:
        """The validation batch of the step in progress: images [B, C, H, W] and labels [B]."""
        return self._pipeline.batch(search.epoch, search.step)

    def alpha_moves(self, search: SearchContext) -> bool:
        """Whether α has a step before the coming weight step."""
        return search.epoch >= self.warm_up

    def before_step(self, search: SearchContext) -> None:
        self.alpha_step(search)

    def alpha_step(self, search: SearchContext) -> None:
        """Moves α once."""
        if not self.alpha_moves(search):
            return
        found = search.world.means(self.alpha_gradients(search))
        if overflowed(search, found):
            return
        for parameter, gradient in zip(self.alpha_parameters, self.clipped(found), strict=True):
            parameter.grad = gradient
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad(set_to_none=True)

    def alpha_gradients(self, search: SearchContext) -> list[Tensor]:
        """The gradient of each of `alpha_parameters`, from this process's part of the images."""
        images, labels = self.alpha_batch(search)
        loss = self.logged_alpha_loss(search, search.network(images, **self.arch_weights(search, 1)), labels)
        return gradients(loss, self.alpha_parameters, search.loss_scale)

    def clipped(self, found: list[Tensor]) -> list[Tensor]:
        """The gradients from all images, as α's optimizer takes them."""
        return found

    def after_epoch(self, search: SearchContext) -> None:
        if self._losses_steps == 0:
            return
        means = {name: float(total) / self._losses_steps for name, total in self._losses.items()}
        terms = {"terms": means} if len(means) > 1 else {}
        search.log.write("alpha", epoch=search.epoch, loss=sum(means.values()), **terms)
        self._losses, self._losses_steps = {}, 0

    # --- what a checkpoint holds ---

    def state_dict(self) -> dict[str, Any]:
        extra = [parameter.detach() for parameter in self.alpha_parameters[len(self._search.network.alphas) :]]
        losses = {"sums": dict(self._losses), "steps": self._losses_steps}
        return {"alpha_optimizer": self.alpha_optimizer.state_dict(), "extra": extra, "losses": losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        losses = state.get("losses", {"sums": {}, "steps": 0})  # which older checkpoints do not hold
        self._losses = {name: total.to(self._search.device) for name, total in losses["sums"].items()}
        self._losses_steps = losses["steps"]
        load_optimizer(self.alpha_optimizer, state["alpha_optimizer"])
        with torch.no_grad():
            extra = self.alpha_parameters[len(self._search.network.alphas) :]
            for parameter, value in zip(extra, state["extra"], strict=True):
                parameter.copy_(value)


def overflowed(search: SearchContext, gradients: Sequence[Tensor | None]) -> bool:
    """Whether gradients of float16 activations are infinite, so that a step must be left out, as the weights' is. Their
    scaler lowers the scale then."""
    if search.loss_scale == 1:
        return False
    return not all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


def gradients(loss: Tensor, parameters: Sequence[Tensor], scale: float = 1.0) -> list[Tensor]:
    """∂loss/∂parameter of each; zeros where it does not depend on one. Nothing is accumulated in `.grad`.

    scale: of the loss on its way back, see `SearchContext.loss_scale`; the gradients are without it."""
    found = torch.autograd.grad(loss if scale == 1 else scale * loss, list(parameters), allow_unused=True)
    found = tuple(grad if grad is None or scale == 1 else grad / scale for grad in found)
    return [torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, found, strict=True)]
