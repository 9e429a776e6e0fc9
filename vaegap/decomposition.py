r"""The decomposition: log p(x) − L[q] = approximation gap + amortization gap, paired image by image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vaegap.bounds import Bound, elbo, join_bounds
from vaegap.errors import InputError
from vaegap.evaluation import evaluating
from vaegap.evidence import LogEvidence, log_evidence
from vaegap.local import OTHER, RECIPES, optimize_local
from vaegap.models import Model
from vaegap.paired import complete_gaps, summarize
from vaegap.posteriors import FAMILIES, Posterior, make_family

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Gaps", "gaps"]

_GAUSSIANS = ("gaussian", "full_gaussian")  # the ladder that all else needs
_PART = 2000  # images whose flows are held at once: 0.3 GB with 50 latents


@dataclass(frozen=True)
class Gaps:
    """Where the nats go, image by image and on average.

    Args:
        table: a column a quantity (in nats) and a row an image.
        errors: Monte-Carlo standard errors, same shape.
        evidence: log p̂ and its certificates.
        bounds: L[q*] by family, with the images whose ascent is not to be trusted in `flagged`.
        posteriors: q* by family: of the Gaussian families always, of others if `gaps` was asked to keep them.
        family: the encoder's own family, whose q* the headline gaps use.

    Example:
        >>> from vaegap.exact import linear_gaussian_vae
        >>> vae = linear_gaussian_vae()
        >>> found = gaps(vae, vae.simulate(20, seed=1), certify=0)
        >>> list(found.bounds), found.family
        (['gaussian', 'full_gaussian'], 'gaussian')
        >>> found.per_image.loc[3, ["log_p", "L_q", "inference"]].shape
        (3,)
    """

    table: pd.DataFrame
    errors: pd.DataFrame
    evidence: LogEvidence
    bounds: dict[str, Bound]
    posteriors: dict[str, Posterior]
    family: str

    @property
    def per_image(self) -> pd.DataFrame:
        """One row an image: log_p, L_q, L_star_<family>, the gaps, and <quantity>_mcse, all in nats."""
        return self.table.join(self.errors.add_suffix("_mcse"))

    @property
    def summary(self) -> pd.DataFrame:
        """One row a quantity: mean, mcse (Monte-Carlo error of the mean), ci_low and ci_high (95 % paired bootstrap
        over images), num_images. Means in nats per image."""
        return summarize(self.table, self.errors)

    @property
    def identity_error(self) -> float:
        """Largest absolute value of inference − approximation − amortization, in nats: rounding only."""
        worst = 0.0
        for name in self.bounds:
            parts = self.table[f"approximation_{name}"] + self.table[f"amortization_{name}"]
            worst = max(worst, float((self.table["inference"] - parts).abs().max()))
        return worst

    @property
    def flagged(self) -> dict[int, list[str]]:
        """Images whose numbers should not be trusted, with the reasons, in ascending order."""
        notes: list[tuple[int, str]] = [
            (i, f"q* missed a posterior mode: annealing from it is too small by {v:.1f} nats")
            for i, v in self.evidence.missed.items()
        ]
        for name, bound in [*((f"q* {k}", b) for k, b in self.bounds.items()), ("AIS", self.evidence.ais)]:
            notes += [(i, f"{name}: {why}") for i, why in (bound.flagged or {}).items()]
        return {i: [why for k, why in notes if k == i] for i in sorted({i for i, _ in notes})}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw log p̂, L[q*] and L[q] with the gaps between them."""
        from vaegap import figures

        return figures.gap_ladder(self.summary, self.family, ax=ax)

    def __repr__(self) -> str:
        text = self.summary[["mean", "mcse", "ci_low", "ci_high"]].round(3).to_string()
        width = f"; BDMC width {self.evidence.sandwich.width:.3f} nats" if self.evidence.sandwich else ""
        bad = self.flagged
        first = f"{next(iter(bad))}: {next(iter(bad.values()))[0]}" if bad else ""
        note = (
            f"\n{len(bad)} of {len(self.table)} images are flagged, see .flagged (first: image {first})" if bad else ""
        )
        return f"Gaps of {len(self.table)} images, encoder family {self.family}{width}\n{text}{note}"


def gaps(
    vae: Model,
    x: Tensor,
    families: str | tuple[str, ...] = ("gaussian", "full_gaussian"),
    num_samples: int = 500,
    num_chains: int = 16,
    num_temperatures: int = 20,
    certify: int = 100,
    check_modes: bool = False,
    force_dtype: torch.dtype | None = None,
    seed: int | None = 0,
    progress: bool = False,
    keep_flows: bool = False,
) -> Gaps:
    r"""Decompose the inference gap of a VAE on some images.

    inference = log p̂(x) − L[q] = (log p̂(x) − L[q*]) + (L[q*] − L[q]) = approximation + amortization, where q* is the
    best member of a family for each image, and q the encoder's.

    Args:
        vae: the model, a `VAE` or anything from `wrap`.
        x: images (N, D).
        families: posterior families to optimise. The encoder's own is always among them; poorer ones that a ladder
            needs are fitted on the way and reported only if asked for.
        num_samples: samples per image behind each L.
        num_chains, num_temperatures: of AIS.
        certify: images to simulate for the BDMC width; 0 leaves log p̂ without a certificate.
        check_modes: look for posterior modes that q* missed (see `log_evidence`); costs about as much again.
        force_dtype: precision of the decoder's gradients, e.g. torch.bfloat16.
        seed: of everything random; None draws one from torch's global state.
        progress: show bars.
        keep_flows: keep every q* in `posteriors`, not the Gaussian ones only. A flow has weights of its own for every
            image, 0.16 MB with 50 latents; without them 10,000 images need less than 3 GB, whatever the families.

    Returns:
        `Gaps`: `.per_image`, `.summary`, `.flagged`, `.plot()`.

    Raises:
        InputError: unusable images, an unknown family, or a single chain.

    Source: Cremer et al. 2018, section 3, Table 1.

    Example:
        >>> from vaegap.exact import linear_gaussian_vae
        >>> vae = linear_gaussian_vae()
        >>> result = gaps(vae, vae.simulate(20, seed=1), certify=0)
        >>> result.identity_error < 1e-9
        True
    """
    families = (families,) if isinstance(families, str) else tuple(families)
    unknown = [f for f in families if not isinstance(f, str) or f not in FAMILIES]
    if unknown:
        raise InputError(f"unknown posterior families {unknown}; choose from {', '.join(FAMILIES)}")
    if num_samples < 2 or num_chains < 2 or num_temperatures < 1 or certify < 0:
        raise InputError(
            f"num_samples={num_samples}, num_chains={num_chains}, num_temperatures={num_temperatures}, "
            f"certify={certify}: an error bar needs at least 2 samples and chains, AIS a temperature"
        )
    x = vae.check(x)
    for name in families:
        make_family(name, vae.latent_dim)  # a flow of one latent is refused before anything is computed
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    with evaluating(vae):
        own = vae.encode(x[:1]).family.name
    if own not in FAMILIES:
        raise InputError(
            f"the encoder's family {own!r} is not registered, so its q* cannot be asked for by name: "
            f"vaegap.posteriors.FAMILIES[{own!r}] = its class"
        )
    wanted = [f for f in FAMILIES if f in (*families, own)]
    options: dict[str, Any] = {"force_dtype": force_dtype, "seed": seed, "progress": progress}
    bounds: dict[str, Bound] = {}
    posteriors: dict[str, Posterior] = {}
    for name in [*_GAUSSIANS, *[f for f in wanted if f not in _GAUSSIANS]]:
        keep = keep_flows or name in _GAUSSIANS
        samples = num_samples if name in wanted else 2
        below = posteriors.get(RECIPES.get(name, OTHER).start)
        bounds[name], kept = _optima(vae, x, name, below, len(x) if keep else _PART, num_eval=samples, **options)
        if keep:
            posteriors[name] = kept
    evidence = log_evidence(
        vae,
        x,
        posteriors["full_gaussian"],
        num_chains,
        num_temperatures,
        num_samples * 2,
        certify,
        check_modes,
        **options,
    )
    amortized = elbo(vae, x, num_samples, seed=seed + 5)
    return _assemble(evidence, amortized, {name: bounds[name] for name in wanted}, posteriors, own)


def _optima(
    vae: Model, x: Tensor, family: str, below: Posterior | None, size: int, *, seed: int, **options: Any
) -> tuple[Bound, Posterior]:
    """L[q*] of all images, so many at a time, and q* of the last of them."""
    found: list[Bound] = []
    for first in range(0, len(x), size):
        index = torch.arange(first, min(first + size, len(x)), device=x.device)
        start = None if below is None else below[index]
        try:  # parts draw noise of their own
            fit = optimize_local(vae, x[index], family, start, seed=seed + 1_000_003 * first, **options)
        except InputError as error:
            raise error.among(index.tolist()) from error
        found.append(fit.bound)
    return join_bounds(found), fit.posterior


def _assemble(
    evidence: LogEvidence, amortized: Bound, best: dict[str, Bound], posteriors: dict[str, Posterior], own: str
) -> Gaps:
    import pandas as pd

    columns = {"log_p": evidence.bound, "L_q": amortized, **{f"L_star_{name}": bound for name, bound in best.items()}}
    index = pd.RangeIndex(len(amortized.per_image), name="image")
    table = pd.DataFrame({k: b.per_image.double().cpu().numpy() for k, b in columns.items()}, index=index)
    errors = pd.DataFrame({k: b.mcse_per_image.double().cpu().numpy() for k, b in columns.items()}, index=index)
    return Gaps(*complete_gaps(table, errors), evidence, best, posteriors, own)
