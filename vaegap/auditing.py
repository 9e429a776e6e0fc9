"""Audit anybody's VAE: how many nats it loses, to its encoder or to its posterior family, and what would help."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vaegap import __version__
from vaegap.adapters import as_model
from vaegap.advice import advise
from vaegap.audited import Audit, Part, Refinement
from vaegap.bounds import iwae
from vaegap.certifying import certify_evidence, fast_forces
from vaegap.channels import check_axes, layout_of, layout_readings, with_layout
from vaegap.decomposition import Gaps, gaps
from vaegap.doubts import doubts
from vaegap.errors import InputError
from vaegap.evaluation import evaluating
from vaegap.examining import examine
from vaegap.intake import Finding, as_images
from vaegap.local import Recipe, optimize_local
from vaegap.models import Model
from vaegap.paired import bootstrap_interval
from vaegap.picturing import drawing_order, natural_shape, picture, picture_shape
from vaegap.posteriors import FAMILIES, make_family
from vaegap.readings import scale_readings
from vaegap.settling import settled

__all__ = ["Audit", "audit", "known_families"]

_REFINE = Recipe(20, 4, 0.3, rounds=1, leaps=0)


def audit(
    vae: Any,
    x: Any,
    heldout: Any = None,
    *,
    families: tuple[str, ...] = ("gaussian", "full_gaussian"),
    num_images: int = 100,
    certify: int = 100,
    target_width: float = 0.1,
    check_modes: bool = True,
    num_samples: int = 500,
    force_dtype: torch.dtype | str | None = "auto",
    shape: tuple[int, int, int] | None = None,
    worst: int = 6,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Audit:
    """How many nats a VAE loses, to its encoder or to its posterior family, and what would help.

    The model is evaluated with batch norm and dropout in evaluation mode, and left as it came.

    Args:
        vae: a `VAE`, something from `wrap`, a pythae model, a module with methods encode and decode, or a pair of
            callables (encoder, decoder).
        x: images that it was trained on (N, D) or (N, C, H, W), tensor or array; or any images, if `heldout` is None.
        heldout: images that it was not trained on.
        families: posterior families to optimise; the encoder's own is always among them.
        num_images: audited per set, drawn at random where there are more; at least 2.
        certify: images to simulate for the BDMC width; 0 for none.
        target_width: nats; temperatures are doubled until the width is below, at most three times. The width that is
            reported comes from other simulated images than those that chose the temperatures.
        check_modes: look for posterior modes that q* missed.
        num_samples: behind each bound.
        force_dtype: precision of a plain MLP decoder's gradients (densities stay exact); "auto" is torch.bfloat16 where
            the processor multiplies such matrices faster, None the model's own.
        shape: (channels, height, width) of the pictures; None guesses.
        worst: images with the largest gaps to show.
        seed: of everything random.
        progress: show bars on stderr.
        **options: of `wrap`, for a `vae` that is wrapped here: likelihood="gaussian", data_shape=(3, 32, 32), ...

    Returns:
        an `Audit`: prints as a table; `.to_html(path)`, `.to_json(path)`, `.summary`, `.advice`, `.findings`.

    Raises:
        InputError: the model or the images cannot be audited; the message names the cure.

    Source: Cremer et al. 2018; BDMC: Grosse et al. 2015.

    Example:
        >>> from vaegap.exact import linear_gaussian_vae
        >>> vae = linear_gaussian_vae()
        >>> report = audit(vae, vae.simulate(20, seed=1), certify=20, check_modes=False)
        >>> exact = vae.exact_gaps(vae.simulate(20, seed=1)).amortization.mean().item()
        >>> bool(abs(report.parts["images"].summary.loc["amortization_gaussian", "mean"] - exact) < 0.05)
        True
    """
    begin = time.monotonic()
    families = known_families(families)
    if num_images < 2:
        raise InputError(f"num_images={num_images}: intervals over images need at least 2")
    first = as_images(x)
    sets = {"images": first} if heldout is None else {"training": first, "held-out": as_images(heldout, "heldout")}
    for name, images in sets.items():
        if len(images) < 2:
            what = "x" if name != "held-out" else "heldout"
            raise InputError(f"{what} holds a single image: an audit needs at least 2 for its intervals over images")
    natural = natural_shape(x)
    said = layout_of(vae) if isinstance(vae, Model) else options.get("data_shape")
    check_axes(natural, said)
    check_axes(natural_shape(heldout), natural, "heldout", "the shape of an image in x")
    with with_layout(natural, said):
        model = as_model(vae, first[:1], **options)
        check_axes(natural, layout_of(model), whose="what the model takes")
        _check_latents(model, families)
        chosen, findings = _choose(model, sets, natural, num_images, seed)
    forces = fast_forces(model) if isinstance(force_dtype, str) else force_dtype
    steps, certificate = certify_evidence(model, certify, target_width, forces, seed, progress)
    order = drawing_order(first.shape[1], natural, layout_of(model))
    parts: dict[str, Part] = {}
    looked = check_modes
    for name, (images, index) in chosen.items():
        with _numbered(index, name):
            result = gaps(
                model,
                images,
                families,
                num_samples,
                num_temperatures=steps,
                certify=0,
                check_modes=check_modes,
                force_dtype=forces,
                seed=seed,
                progress=progress,
            )
            result, beyond = settled(result)
            parts[name] = _part(model, images, index, result, worst, seed, order, beyond)
        looked = looked and bool(getattr(result.evidence, "wide", True))
        if name != "held-out" and result.family == "gaussian":
            findings = scale_readings(model, images, result.posteriors["gaussian"], seed) + findings
    findings += doubts(parts, certificate, target_width, looked)
    settings = {"families": list(families), "num_images": num_images, "num_samples": num_samples, "seed": seed,
                "num_temperatures": steps, "check_modes": looked, "seconds": round(time.monotonic() - begin, 1),
                "vaegap": __version__, "torch": str(torch.__version__)}  # fmt: skip
    about = _describe(vae, model, first.shape[1])
    pictures = shape or picture_shape(first.shape[1], natural, layout_of(model))
    return Audit(
        parts,
        result.family,
        certificate,
        findings,
        advise(parts, result.family, certificate),
        about,
        settings,
        pictures,
    )


def known_families(families: Any) -> tuple[str, ...]:
    """Names of posterior families, or an `InputError`; one name may stand alone.

    Example:
        >>> known_families("flow")
        ('flow',)
    """
    names = (families,) if isinstance(families, str) else tuple(families)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise InputError(
            f"unknown posterior families {', '.join(map(repr, unknown))}; choose from {', '.join(FAMILIES)}"
        )
    return names


def _check_latents(model: Model, families: tuple[str, ...]) -> None:
    """Some families cannot be built for few latents."""
    for name in families:
        try:
            make_family(name, model.latent_dim)
        except ValueError as error:
            raise InputError(f"families: {name!r} does not go with latent_dim={model.latent_dim}: {error}") from None


@contextmanager
def _numbered(index: Tensor, name: str) -> Iterator[None]:
    """Errors name the images by the user's numbers, and not by those of the ones that were drawn."""
    try:
        yield
    except InputError as error:
        where = [int(index[i]) for i in error.indices if i < len(index)]
        if not where:
            raise
        text = re.sub(r"\bimage (\d+)", lambda m: f"image {index[min(int(m[1]), len(index) - 1)]}", str(error))
        raise InputError(text if name == "images" else f"{name}: {text}", where) from error


def _choose(
    model: Model, sets: dict[str, Tensor], natural: tuple[int, ...], num_images: int, seed: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], list[Finding]]:
    """Images to audit with their numbers, and what is odd about them and the model."""
    chosen: dict[str, tuple[Tensor, Tensor]] = {}
    findings: list[Finding] = []
    for name, images in sets.items():
        index = _pick(len(images), num_images, seed)
        chosen[name] = (images[index], index)
        with _numbered(index, name):
            found = examine(model, images[index])
            if not chosen.keys() - {name}:
                guess = picture_shape(images.shape[1])
                found = layout_readings(model, images[index][:64], natural, layout_of(model), guess, seed=seed) + found
        findings += [f for f in found if f.kind not in {g.kind for g in findings}]
    return chosen, findings


def _describe(vae: Any, model: Model, pixels: int) -> dict[str, Any]:
    """What the report says about the model."""
    inner = getattr(model, "wrapped", model)
    names = [type(m).__name__ for m in getattr(inner, "registered", ())]
    return {
        "name": type(vae).__name__ if not names or type(vae).__name__ in names else " + ".join(names[:3]),
        "latent_dim": model.latent_dim,
        "pixels": pixels,
        "likelihood": model.likelihood.name,
        "prior": "N(0, I)" if model.prior is None else str(model.prior),
        "parameters": sum(p.numel() for p in inner.parameters()),
        "dtype": str(getattr(inner, "module_dtype", inner.dtype)).removeprefix("torch."),
        "device": str(model.device),
    }


def _pick(available: int, wanted: int, seed: int) -> Tensor:
    """Numbers of the images to audit, in ascending order."""
    if available <= wanted:
        return torch.arange(available, device="cpu")  # wherever torch's default device may be
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(available, generator=generator, device="cpu")[:wanted].sort().values


def _part(
    model: Model, images: Tensor, index: Tensor, result: Gaps, worst: int, seed: int, order: Tensor, beyond: float
) -> Part:
    numbers = index.tolist()
    table, errors = result.table.copy(), result.errors.copy()
    table.index = errors.index = _index(numbers)
    images = model.check(images)
    plain = iwae(model, images, 1000, seed=seed + 21)
    with evaluating(model):
        q = model.encode(images)
        mean = q.mean
        activity = mean.double().var(0) if len(mean) > 1 else torch.zeros(model.latent_dim)
        loosest = result.table["inference"].sort_values(ascending=False).index[:worst].tolist()
        pictures = [picture(model, images[i], mean[i], numbers[i], order) for i in loosest]
    weighted = result.evidence.iwae
    unsettled = result.bounds[result.family].flagged or {}
    return Part(
        table,
        errors,
        _list(weighted.khat),
        _list(plain.khat),
        plain.mean,
        _list(activity),
        {numbers[i]: v for i, v in result.evidence.missed.items()},
        {numbers[i]: v for i, v in (result.evidence.ais.flagged or {}).items()},
        pictures,
        _refine(model, images, result, seed),
        str(getattr(result.evidence, "source", "ais")),
        beyond,
        _list(result.posteriors["gaussian"].mean.double().var(0)),
        {numbers[i]: why for i, why in unsettled.items()},
    )


def _index(numbers: list[int]) -> Any:
    import pandas as pd

    return pd.Index(numbers, name="image")


def _list(values: Tensor | None) -> list[float]:
    return [] if values is None else [float(v) for v in values.double().cpu()]


def _refine(model: Model, images: Tensor, result: Gaps, seed: int) -> Refinement | None:
    """Twenty gradient steps on the encoder's q: what anybody could do at test time."""
    if result.family != "gaussian":
        return None
    fit = optimize_local(model, images, "gaussian", num_eval=100, recipe=_REFINE, seed=seed + 31)
    gain = (fit.bound.per_image.double().cpu() - torch.tensor(result.table["L_q"].to_numpy(), device="cpu")).flatten()
    low, high = bootstrap_interval(gain)
    return Refinement(_REFINE.steps, gain.mean().item(), low, high)
