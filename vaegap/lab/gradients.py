"""The gradient of a training step: by autograd for any model, by hand for the one that most runs train."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from vaegap.fast import MLP, mlp_backward, mlp_forward
from vaegap.likelihoods import Bernoulli
from vaegap.models import VAE
from vaegap.posteriors.base import LOGVAR_MAX, LOGVAR_MIN, normal_log_prob
from vaegap.posteriors.gaussian import Gaussian, GaussianHead

__all__ = ["Step"]


class Step:
    r"""The loss E_q[λ log q(z|x) − log p(x, z)] of a batch, one sample an image, and its gradient.

    The trained weights become views of one vector, and their gradients of another: an optimizer then has one tensor
    to move, a norm one to measure. Perceptrons with ELU, q_FFG and Bernoulli pixels are differentiated by hand, which
    spares autograd's bookkeeping: at a hundred images a step, a fifth of the time on one thread, a third on two.

    Args:
        vae: the model; its trained parameters are those that require gradients.

    Example:
        >>> step = Step(VAE(6, 2, encoder_hidden=(4,), decoder_hidden=(4,), seed=0))
        >>> bool(step(torch.ones(3, 6), 1.0, torch.Generator()) < 0), bool(step.weights.grad.abs().sum() > 0)
        (True, True)
    """

    def __init__(self, vae: VAE) -> None:
        self.vae = vae
        self.params = [p for p in vae.parameters() if p.requires_grad]
        self.weights = parameters_to_vector(self.params).detach().clone()
        vector_to_parameters(self.weights, self.params)
        self.weights.grad = torch.zeros_like(self.weights)
        pieces = self.weights.grad.split([p.numel() for p in self.params])
        slots = {p: piece.view_as(p) for p, piece in zip(self.params, pieces, strict=True)}
        self.by_hand = _known(vae)
        if self.by_hand:
            self._encoder = [*vae.features.parameters(), *vae.head.parameters()]
            self._decoder = list(vae.decoder.parameters())
            self._slots = [[slots.get(p) for p in part] for part in (self._encoder, self._decoder)]

    def __call__(self, x: Tensor, weight: float, generator: torch.Generator) -> Tensor:
        """Write the gradient of the mean loss to `weights.grad`; returns the batch's Σ log p(x, z) − log q(z|x).

        Args:
            x: images (N, D).
            weight: λ.
            generator: source of the one sample an image.
        """
        if self.by_hand:
            return self._hand(x, weight, generator)
        z, log_q = self.vae.encode(x).rsample_and_log_prob(1, generator=generator)
        log_joint = self.vae.log_joint(x, z)
        loss = (weight * log_q - log_joint).mean()
        grads = torch.autograd.grad(loss, self.params, materialize_grads=True)
        torch.cat([g.reshape(-1) for g in grads], out=self.weights.grad)
        return (log_joint - log_q).detach().sum()

    @torch.no_grad()
    def _hand(self, x: Tensor, weight: float, generator: torch.Generator) -> Tensor:
        """With z = μ + σε: dL/dμ = dL/dz and dL/d log σ² = (ε σ dL/dz − λ/N)/2."""
        encoded = mlp_forward(x, False, self._encoder)
        mean, raw = encoded[-1].chunk(2, -1)
        logvar = raw.clamp(LOGVAR_MIN, LOGVAR_MAX)
        eps = torch.randn((1, *mean.shape), generator=generator, dtype=x.dtype, device=x.device)[0]
        shift = (0.5 * logvar).exp_() * eps
        z = mean + shift
        decoded = mlp_forward(z, False, self._decoder)
        logits = decoded[-1]
        slope = torch.sigmoid(logits).sub_(x).div_(len(x))
        grad = mlp_backward(slope, decoded, False, self._decoder, self._slots[1])
        grad.add_(z, alpha=1 / len(x))
        grad_logvar = (grad * shift).sub_(weight / len(x)).mul_(0.5).mul_(raw == logvar)
        mlp_backward(torch.cat([grad, grad_logvar], -1), encoded, False, self._encoder, self._slots[0], leaf=True)
        log_q = normal_log_prob(eps).sum() - 0.5 * logvar.sum()
        return self.vae.likelihood.log_prob(logits, x).sum() + normal_log_prob(z).sum() - log_q

    def release(self) -> None:
        """Give every parameter its own memory back."""
        for p in self.params:
            p.data = p.data.clone()


def _known(vae: VAE) -> bool:
    """Whether the gradient is the one written out above."""
    parts = (vae.features, MLP), (vae.decoder, MLP), (vae.head, GaussianHead)
    kinds = (vae.family, Gaussian), (vae.likelihood, Bernoulli), (vae, VAE)
    return vae.prior is None and all(type(part) is kind for part, kind in (*parts, *kinds))
