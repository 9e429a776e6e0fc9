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
_NUMBERS = 2**26  # of flows that are held at once: 0.3 GB in float32, 1,700 images with 50 latents


@dataclass(frozen=True)
class Gaps:
    """Where the nats go, image by image and on average.

    Args:
        table: a column a quantity (in nats) and a row an image.
        errors: Monte-Carlo standard errors, same shape.
        evidence: log p̂ and its certificates.
        bounds: L[q*] by family, of those fitted on the way too, with the images whose ascent is not to be trusted in
            `flagged`.
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
        for name in [c.removeprefix("approximation_") for c in self.table if c.startswith("approximation_")]:
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
            needs are fitted on the way, and are in the tables only if asked for.
        num_samples: samples per image behind each L.
        num_chains, num_temperatures: of AIS.
        certify: images to simulate for the BDMC width; 0 leaves log p̂ without a certificate.
        check_modes: look for posterior modes that q* missed (see `log_evidence`); costs about as much again.
        force_dtype: precision of the decoder's gradients, e.g. torch.bfloat16.
        seed: of everything random; None draws one from torch's global state.
        progress: show bars.
        keep_flows: keep every q* in `posteriors`, not the Gaussian ones only. A flow has weights of its own for every
            image, 0.16 MB with 50 latents; without them 10,000 images of 50 latents need less than 3 GB, whatever the
            families.

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
        below = posteriors.get(RECIPES.get(name, OTHER).start)
        keep = keep_flows or name in _GAUSSIANS
        bounds[name], best = _optima(vae, x, name, below, keep, num_eval=num_samples, **options)
        if best is not None:
            posteriors[name] = best
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
    columns = {"log_p": evidence.bound, "L_q": amortized, **{f"L_star_{name}": bounds[name] for name in wanted}}
    return Gaps(*complete_gaps(*_frames(columns)), evidence, bounds, posteriors, own)


def _optima(
    vae: Model, x: Tensor, family: str, below: Posterior | None, keep: bool, *, seed: int, **options: Any
) -> tuple[Bound, Posterior | None]:
    """L[q*], and q* of all images if it is to be kept; if not, it is held for some images at a time."""
    numbers = make_family(family, vae.latent_dim).local_variant().numbers_per_image()
    size = len(x) if keep else max(1, _NUMBERS // numbers)
    found: list[Bound] = []
    kept = None
    for first in range(0, len(x), size):
        index = torch.arange(first, min(first + size, len(x)), device=x.device)
        start = None if below is None else below[index]
        try:  # parts draw noise of their own
            fit = optimize_local(vae, x[index], family, start, seed=seed + 1_000_003 * first, **options)
        except InputError as error:
            raise error.among(index.tolist()) from error
        found.append(fit.bound)
        kept = fit.posterior if keep else None
        del fit  # or the next part would be fitted beside this one
    return join_bounds(found), kept


def _frames(columns: dict[str, Bound]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Values and standard errors, a column a bound and a row an image."""
    import pandas as pd

    index = pd.RangeIndex(len(columns["L_q"].per_image), name="image")
    table = pd.DataFrame({k: b.per_image.double().cpu().numpy() for k, b in columns.items()}, index=index)
    errors = pd.DataFrame({k: b.mcse_per_image.double().cpu().numpy() for k, b in columns.items()}, index=index)
    return table, errors
