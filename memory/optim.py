"""The optimizers, and which parameter has which."""
import torch


def orthogonalize(matrices, dtype, steps=5):
    """Newton-Schulz iteration towards the nearest matrices whose singular values are all about 1.

    matrices: float (n, rows, columns), rows <= columns. dtype: in which to multiply, as device.py chooses it. Returns
    that dtype, in the same shape. Coefficients and number of steps as in Jordan et al. 2024 and torch.optim.Muon.
    """
    x = matrices.to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum (Jordan et al. 2024): what torch.optim.Muon computes without weight decay, but of all
    matrices of a shape at once, since they are too small to fill a processor one by one."""

    def __init__(self, matrices, lr, dtype, momentum=0.95):
        """matrices: parameters (rows, columns) of any few shapes. dtype: in which to orthogonalize."""
        self.dtype = dtype
        shapes = dict.fromkeys(p.shape for p in matrices)
        super().__init__([{"params": [p for p in matrices if p.shape == shape]} for shape in shapes],
                         {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        """Moves every matrix against its gradient. The state, kept with the first matrix of a shape, is float (n, rows,
        columns)."""
        for group in self.param_groups:
            matrices, momentum = group["params"], group["momentum"]
            rows, columns = matrices[0].shape
            gradients, state = torch.stack([p.grad for p in matrices]), self.state[matrices[0]]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradients)
            average = state["momentum_buffer"].lerp_(gradients, 1 - momentum)
            direction = gradients.lerp(average, momentum)
            tall = rows > columns
            direction = orthogonalize(direction.mT if tall else direction, self.dtype)
            direction = direction.mT if tall else direction
            torch._foreach_add_(matrices, list((direction.float() * max(1, rows / columns) ** 0.5).unbind()),
                                alpha=-group["lr"])


def make_optimizers(model, settings, dtype):
    """[(optimizer, peak learning rate)]; every parameter belongs to exactly one. dtype: of Muon's matrix products.

    Muon (Jordan et al. 2024) takes the matrices inside the blocks; AdamW (Loshchilov & Hutter 2019) tables and norms.
    """
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and ".layers." in name]
    if settings.optimizer == "adamw":
        matrices = []
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [(torch.optim.AdamW(rest, lr=settings.learning_rate, betas=(0.9, settings.beta2), weight_decay=0.0,
                                     fused=rest[0].device.type != "mps"), settings.learning_rate)]
    if matrices:
        optimizers.append((Muon(matrices, settings.muon_lr, dtype), settings.muon_lr))
    return optimizers


def update(optimizers, scale):
    """One step of every optimizer, at `scale` times its peak learning rate, from gradients that are then dropped."""
    for optimizer, peak in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = peak * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
