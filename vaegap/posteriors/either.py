"""The better of two posteriors, image by image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaegap.posteriors.base import Family, Params, Posterior

__all__ = ["Either", "either"]


class Either(Family):
    """Two members of one family in different forms, with a choice per image; only for evaluation.

    Made by `either`; parameters are those of both, under the prefixes "first/" and "second/", and "pick" (N,).
    """

    def __init__(self, first: Family, second: Family) -> None:
        super().__init__(first.latent_dim)
        self.first, self.second, self.name = first, second, first.name
        self.tractable = first.tractable and second.tractable

    @property
    def noise_dim(self) -> int:
        return max(self.first.noise_dim, self.second.noise_dim)

    def _split(self, params: Params) -> tuple[Params, Params]:
        return tuple(  # type: ignore[return-value]
            {k.removeprefix(side): v for k, v in params.items() if k.startswith(side)} for side in ("first/", "second/")
        )

    def transform(self, params: Params, eps: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        one, two = self._split(params)
        u, log_q = self.first.transform(one, eps[..., : self.first.noise_dim])
        w, log_r = self.second.transform(two, eps[..., : self.second.noise_dim])
        # auxiliaries are spent here, where each form still knows its own
        log_q, log_r = log_q - self.first.reverse_log_prob(one, u), log_r - self.second.reverse_log_prob(two, w)
        pick = params["pick"] > 0.5
        return (torch.where(pick.unsqueeze(-1), w[0], u[0]),), torch.where(pick, log_r, log_q)

    def log_density(self, params: Params, u: tuple[Tensor, ...]) -> Tensor:
        one, two = self._split(params)
        return torch.where(params["pick"] > 0.5, self.second.log_density(two, u), self.first.log_density(one, u))

    def from_gaussian(self, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
        raise TypeError("a choice between two posteriors is made by either(), not from a Gaussian")

    def head(self, hidden_dim: int) -> nn.Module:
        raise TypeError("a choice between two posteriors cannot be amortized")


def either(first: Posterior, second: Posterior, pick_second: Tensor) -> Posterior:
    """`second` for the images where `pick_second` (N,) is true, `first` for the others.

    Where both have the same form, the tensors are merged; else the result carries both.
    """
    same = type(first.family) is type(second.family) and first.family.options == second.family.options
    alike = same and all(first.params[k].shape == second.params[k].shape for k in first.params)
    if alike and all(v.shape[0] == len(first) for v in first.params.values()):
        shaped = {k: pick_second.view(-1, *[1] * (v.dim() - 1)) for k, v in first.params.items()}
        return Posterior(
            first.family, {k: torch.where(shaped[k], second.params[k], v) for k, v in first.params.items()}
        )
    params = {f"first/{k}": v for k, v in first.params.items()} | {f"second/{k}": v for k, v in second.params.items()}
    mean = first.params["mean"]
    return Posterior(Either(first.family, second.family), {**params, "mean": mean, "pick": pick_second.to(mean)})
