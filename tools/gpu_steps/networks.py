"""Whole supernets: a weight step and a population on the device, against the same network on the CPU in float64."""

from __future__ import annotations

from gpu_steps.ground import Ground

WORST = {"float32": 2e-3, "bfloat16": 0.3}  # ‖difference‖ / ‖value‖ of all gradients together, and of logits


def run(ground: Ground) -> None:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from benchmarks.harness.networks import SPACES
    from fastnas.nn import Supernet

    channels, batch, size = (4, 2, 8) if ground.rehearse else (16, 32, 32)

    def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
        a, b = (torch.cat([one.detach().double().cpu().flatten() for one in each]) for each in (ours, theirs))
        return ((a - b).norm() / b.norm()).item()

    for space, parts in list(SPACES.items())[: 1 if ground.rehearse else None]:
        torch.manual_seed(ground.seed)
        oracle = Supernet(space, channels=channels, layers=3, partial_channels=parts, backend="reference").double()
        images, labels = torch.randn(batch, 3, size, size), torch.arange(batch) % 10
        alphas = {kind: torch.randn(2, *alpha.shape) for kind, alpha in oracle.alphas.items()}  # [P, E, O]
        device = ground.device

        def results(
            network: Supernet, x: Tensor, labels: Tensor, alphas: dict[str, Tensor]
        ) -> tuple[list[Tensor], Tensor]:
            loss = F.cross_entropy(network(x), labels)
            loss.backward()
            grads = [p.grad for p in network.weight_parameters() if p.grad is not None]
            with torch.no_grad():
                return grads, network.population_logits(x, alphas, bn_mode="batch")  # [P, B, classes]

        wanted = results(oracle, images.double(), labels, {kind: alpha.double() for kind, alpha in alphas.items()})
        for precision in ("float32",) if ground.rehearse else WORST:
            network = Supernet(space, channels=channels, layers=3, partial_channels=parts, backend="fused")
            network.load_state_dict({name: value.float() for name, value in oracle.state_dict().items()}, strict=True)
            network = network.to(device).to(memory_format=torch.channels_last)
            low = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
            on_device = {kind: alpha.to(device) for kind, alpha in alphas.items()}
            with ground.kernels(), low:
                grads, logits = results(network, images.to(device), labels.to(device), on_device)
            shares = {"gradients": apart(grads, wanted[0]), "population": apart([logits], [wanted[1]])}
            ground.add("compared", {"space": space, "precision": precision, **shares})
            for what, share in shares.items():
                if not share < WORST[precision]:
                    ground.add("failures", f"{space}, {precision}: {what} are {share:.2g} of their norm off")
