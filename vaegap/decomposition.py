r"""The decomposition: log p(x) − L[q] = approximation gap + amortization gap, paired image by image."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vaegap.annealing import Sandwich, ais, bdmc
from vaegap.bounds import Bound, elbo, evaluating, iwae
from vaegap.errors import InputError
from vaegap.local import OTHER, RECIPES, LocalFit, optimize_local
from vaegap.models import Model
from vaegap.posteriors import FAMILIES, Posterior, make_family

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Gaps", "LogEvidence", "bootstrap_interval", "complete_gaps", "gaps", "log_evidence", "summarize"]

_RESAMPLES = 2000


@dataclass(frozen=True)
class LogEvidence:
    """log p̂(x) with what it rests on.

    Args:
        bound: the chosen bound, per image in nats: whichever of `ais`, `iwae` and `wide` has the largest mean (all are
            lower bounds; the paper's rule).
        ais: annealed importance sampling from the best Gaussian q*.
        iwae: the importance-weighted bound with that q* as its proposal.
        sandwich: BDMC with the settings of `ais` on simulated images, or None if it was not asked for.
        missed: indices of images where AIS from the prior or a defensive mixture found more mass, and the difference.
        wide: AIS from the prior and from the mixture, if missed modes were looked for.
        source: which of them `bound` is: "ais", "iwae", or the base of a wide one, "prior" or "mixture". Wide ones win
            only where q* misses mass on most images.
    """

    bound: Bound
    ais: Bound
    iwae: Bound
    sandwich: Sandwich | None
    missed: dict[int, float]
    wide: dict[str, Bound] = field(default_factory=dict)
    source: str = "ais"


@dataclass(frozen=True)
class Gaps:
    """Where the nats go, image by image and on average.

    Args:
        table: a column a quantity (in nats) and a row an image.
        errors: Monte-Carlo standard errors, same shape.
        evidence: log p̂ and its certificates.
        fits: the locally optimal posteriors by family.
        family: the encoder's own family, whose q* the headline gaps use.
    """

    table: pd.DataFrame
    errors: pd.DataFrame
    evidence: LogEvidence
    fits: dict[str, LocalFit]
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
        for name in self.fits:
            parts = self.table[f"approximation_{name}"] + self.table[f"amortization_{name}"]
            worst = max(worst, float((self.table["inference"] - parts).abs().max()))
        return worst

    @property
    def flagged(self) -> dict[int, list[str]]:
        """Images whose numbers should not be trusted, with the reasons, in ascending order."""
        notes: list[tuple[int, str]] = [
            (i, f"q* missed a posterior mode: log p̂ is too small by {v:.1f} nats")
            for i, v in self.evidence.missed.items()
        ]
        for name, bound in [("AIS", self.evidence.ais), *((f"q* {k}", fit.bound) for k, fit in self.fits.items())]:
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


def summarize(table: pd.DataFrame, errors: pd.DataFrame) -> pd.DataFrame:
    """Means over images with their errors; see `Gaps.summary`.

    Args:
        table: a column a quantity, a row an image, in nats.
        errors: Monte-Carlo standard errors, same shape.
    """
    import pandas as pd

    rows = {}
    for name in table.columns:
        values = table[name].to_numpy(dtype=float, copy=True)
        low, high = bootstrap_interval(torch.from_numpy(values))
        error = float((errors[name] ** 2).sum(skipna=False) ** 0.5 / len(values))  # an unknown error is not 0
        rows[name] = {"mean": values.mean(), "mcse": error, "ci_low": low, "ci_high": high, "num_images": len(values)}
    return pd.DataFrame.from_dict(rows, orient="index").astype({"num_images": int})


def bootstrap_interval(values: Tensor, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of values (N,), resampling images.

    Example:
        >>> low, high = bootstrap_interval(torch.arange(100.0))
        >>> low < 49.5 < high
        True
    """
    values = values.double().flatten().cpu()
    generator = torch.Generator().manual_seed(seed)  # of the CPU, wherever torch's default device may be
    count = len(values)
    block = max(1, 2**21 // count)  # resamples at once
    sizes = [min(block, _RESAMPLES - i) for i in range(0, _RESAMPLES, block)]
    means = torch.cat(
        [values[torch.randint(count, (n, count), generator=generator, device="cpu")].mean(1) for n in sizes]
    )
    at = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device="cpu")
    low, high = torch.quantile(means, at).tolist()
    return low, high


def log_evidence(
    vae: Model,
    x: Tensor,
    best: Posterior,
    num_chains: int = 16,
    num_temperatures: int = 20,
    num_importance: int = 1000,
    certify: int = 0,
    check_modes: bool = False,
    force_dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: bool = False,
) -> LogEvidence:
    r"""log p̂(x): AIS and IWAE from a locally optimal Gaussian, the larger mean of the two.

    Args:
        vae: the model.
        x: images (N, D).
        best: a (full-covariance) Gaussian fitted to these images: the base of AIS and IWAE's proposal.
        num_chains, num_temperatures: of AIS.
        num_importance: samples of IWAE.
        certify: images to simulate for BDMC with the same settings; 0 for none.
        check_modes: also run AIS from the prior, and from the defensive mixture of the encoder's q and the prior, and
            report images where either is higher by more than 3 standard errors and 0.5 nat, twice: `best` has missed a
            mode. With a prior other than N(0, I), from the prior alone.
        force_dtype, seed, progress: as in `ais`.

    Source: the max rule: Cremer et al. 2018, section 5 (as in their code); BDMC: Grosse et al. 2015.
    """
    if num_chains < 2:
        raise InputError(f"num_chains={num_chains}: the error of log p̂ needs at least 2 chains")
    options: dict[str, Any] = {"num_chains": num_chains, "force_dtype": force_dtype, "progress": progress}
    candidates = {"ais": ais(vae, x, num_temperatures=num_temperatures, base=best, seed=seed, **options)}
    candidates["iwae"] = iwae(vae, x, num_importance, best, seed=seed + 1)
    wide: dict[str, Bound] = {}
    missed: dict[int, float] = {}
    # neither base is enough: chains of the mixture move at q's scale, those of the prior need many temperatures
    for base in (("prior", "mixture") if vae.prior is None else ("prior",)) if check_modes else ():
        more = {"num_temperatures": max(100, num_temperatures), "base": base, **options}
        wide[base] = ais(vae, x, seed=seed + 2, **more)
        for i, excess in _missed(vae, x, candidates["ais"], wide[base], seed + 102, more).items():
            missed[i] = max(excess, missed.get(i, excess))
    candidates |= wide
    source = max(candidates, key=lambda name: candidates[name].mean)
    sandwich = None
    if certify:

        def fit(images: Tensor) -> Posterior:
            return optimize_local(
                vae, images, best.family, num_eval=2, force_dtype=force_dtype, seed=seed + 3
            ).posterior

        try:
            sandwich = bdmc(vae, certify, num_temperatures=num_temperatures, base=fit, seed=seed + 4, **options)
        except InputError as error:  # its indices are not those of x
            raise InputError(f"on images simulated from the model (certify=0 does without them): {error}") from error
    return LogEvidence(candidates[source], candidates["ais"], candidates["iwae"], sandwich, missed, wide, source)


def _missed(
    vae: Model, x: Tensor, annealed: Bound, wide: Bound, seed: int, options: dict[str, Any]
) -> dict[int, float]:
    """Images where AIS from a wider base is higher, also in a second run: a few chains' error bars are rough."""
    found = torch.tensor(sorted(_higher(wide, annealed)), dtype=torch.long, device=x.device)
    if len(found) == 0:
        return {}
    lower = replace(
        annealed, per_image=annealed.per_image[found], mcse_per_image=annealed.mcse_per_image[found], flagged=None
    )
    try:
        second = ais(vae, x[found], seed=seed, **options)
    except InputError as error:
        raise error.among(found.tolist()) from error
    again = _higher(second, lower)
    return {int(found[i]): excess for i, excess in again.items()}


def _higher(wide: Bound, annealed: Bound) -> dict[int, float]:
    """By how much, where it is more than 3 standard errors and half a nat."""
    excess = (wide.per_image - annealed.per_image).cpu()
    error = (wide.mcse_per_image.square() + annealed.mcse_per_image.square()).sqrt().cpu()
    high = excess > torch.maximum(3 * error, torch.full_like(error, 0.5))
    return {i: excess[i].item() for i in high.nonzero().flatten().tolist()}


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

    Returns:
        `Gaps`: `.per_image`, `.summary`, `.flagged`, `.plot()`.

    Raises:
        InputError: unusable images, an unknown family, or a single chain.

    The posteriors of all images are kept in `fits`. A flow's weigh most: with 50 latents 0.16 MB an image for
    "aux_flow", 0.16 MB for "spline"; for more than 10,000 images of one, or 5,000 of both, call this in parts.

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
    fits: dict[str, LocalFit] = {}
    order = ["gaussian", "full_gaussian", *[f for f in wanted if f not in ("gaussian", "full_gaussian")]]
    for name in order:
        below = fits.get(RECIPES.get(name, OTHER).start)
        reported = num_samples if name in wanted else 2
        fits[name] = optimize_local(
            vae,
            x,
            name,
            below.posterior if below is not None else None,
            num_eval=reported,
            force_dtype=force_dtype,
            seed=seed,
            progress=progress,
        )
    evidence = log_evidence(
        vae,
        x,
        fits["full_gaussian"].posterior,
        num_chains,
        num_temperatures,
        num_samples * 2,
        certify,
        check_modes,
        force_dtype,
        seed,
        progress,
    )
    amortized = elbo(vae, x, num_samples, seed=seed + 5)
    return _assemble(evidence, amortized, {name: fits[name] for name in wanted}, own)


def _assemble(evidence: LogEvidence, amortized: Bound, fits: dict[str, LocalFit], own: str) -> Gaps:
    import pandas as pd

    bounds = {"log_p": evidence.bound, "L_q": amortized, **{f"L_star_{name}": fit.bound for name, fit in fits.items()}}
    index = pd.RangeIndex(len(amortized.per_image), name="image")
    table = pd.DataFrame({k: b.per_image.double().cpu().numpy() for k, b in bounds.items()}, index=index)
    errors = pd.DataFrame({k: b.mcse_per_image.double().cpu().numpy() for k, b in bounds.items()}, index=index)
    return Gaps(*complete_gaps(table, errors), evidence, fits, own)


def complete_gaps(table: pd.DataFrame, errors: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Add the gaps to per-image bounds: log_p, L_q and L_star_<family> in, the same and all gaps out (nats)."""
    table, errors = table.copy(), errors.copy()
    families = [c.removeprefix("L_star_") for c in table.columns if c.startswith("L_star_")]
    pairs = {f"approximation_{f}": ("log_p", f"L_star_{f}") for f in families}
    pairs |= {f"amortization_{f}": (f"L_star_{f}", "L_q") for f in families} | {"inference": ("log_p", "L_q")}
    for name, (upper, lower) in pairs.items():
        table[name] = table[upper] - table[lower]
        errors[name] = (errors[upper] ** 2 + errors[lower] ** 2) ** 0.5
    return table, errors
