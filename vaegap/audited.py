"""The result of an audit: numbers by set of images, findings, advice; to JSON and back."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaegap.advice import Advice
from vaegap.errors import InputError
from vaegap.intake import Finding
from vaegap.paired import summarize

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Audit", "Certificate", "Part", "Picture", "Refinement"]

_SCHEMA = 1


@dataclass(frozen=True)
class Certificate:
    """BDMC on images simulated from the model, with the settings that log p̂ was computed with.

    Args:
        width: of the sandwich (nats), and its Monte-Carlo error `mcse`.
        num_images, num_temperatures, num_chains: settings.
    """

    width: float
    mcse: float
    num_images: int
    num_temperatures: int
    num_chains: int


@dataclass(frozen=True)
class Refinement:
    """A few gradient steps on the encoder's q at test time: what they gained (nats), with its 95 % interval."""

    steps: int
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Picture:
    """An image whose bound is loosest: its number, its pixels and the decoder's mean at q's mean, each (D,)."""

    image: int
    pixels: list[float]
    reconstruction: list[float]


@dataclass(frozen=True)
class Part:
    """Numbers of one set of images.

    Args:
        table: one row an image: log_p, L_q, L_star_<family>, the gaps, in nats; the index is the image's number.
        errors: Monte-Carlo standard errors, same shape.
        khat: Pareto k̂ of importance sampling with q* (one number an image).
        khat_encoder: the same with the encoder's q.
        iwae: mean of the importance-weighted bound with the encoder's q, the estimate that most papers report (nats).
        activity: variance over images of the posterior mean, one number a latent.
        missed: image -> nats by which a search from the prior found more mass.
        stuck: image -> what is wrong with its AIS chains.
        worst: images with the largest gaps.
        refined: a few gradient steps at test time; None where they were not tried.
        source: what log p̂ is: "ais" or "iwae" from q*, or AIS from the "prior" or the "mixture" of q and the prior.
        beyond: nats by which a `source` that is no "ais" or "iwae" is above those on average.
        activity_best: as `activity`, of the mean of the factorized q*; empty in older reports without it.
        unsettled: image -> why the ascent to q* of the encoder's own family did not end there.
    """

    table: pd.DataFrame
    errors: pd.DataFrame
    khat: list[float]
    khat_encoder: list[float]
    iwae: float
    activity: list[float]
    missed: dict[int, float]
    stuck: dict[int, str]
    worst: list[Picture] = field(default_factory=list)
    refined: Refinement | None = None
    source: str = "ais"
    beyond: float = 0.0
    activity_best: list[float] = field(default_factory=list)
    unsettled: dict[int, str] = field(default_factory=dict)

    @property
    def summary(self) -> pd.DataFrame:
        """As `Gaps.summary`."""
        return summarize(self.table, self.errors)

    @property
    def latent_dim(self) -> int:
        return len(self.activity)

    @property
    def idle_units(self) -> int:
        """Latents that vary neither in the encoder's means nor in those of q*: the decoder has no use for them."""
        pairs = zip(self.activity, self.activity_best or self.activity, strict=True)
        return sum(v <= 0.01 and w <= 0.01 for v, w in pairs)

    @property
    def active_units(self) -> int:
        """Latents whose posterior mean varies by more than 0.01 over the images (Burda et al. 2016, section 5.2)."""
        return sum(v > 0.01 for v in self.activity)


@dataclass(frozen=True)
class Audit:
    """What `vaegap.audit` found.

    Args:
        parts: numbers by name of the images: "training" and "held-out", or "images".
        family: the encoder's own posterior family.
        certificate: of log p̂; None if it was not asked for.
        findings: oddities, with their cures.
        advice: what to change, and the nats it could gain.
        model: sizes, likelihood, precision.
        settings: of the audit.
        shape: (channels, height, width) of the pictures.

    Example:
        >>> from vaegap import audit
        >>> from vaegap.exact import linear_gaussian_vae
        >>> vae = linear_gaussian_vae()
        >>> report = audit(vae, vae.simulate(20, seed=1), certify=0)
        >>> report.family, list(report.parts)
        ('gaussian', ['images'])
    """

    parts: dict[str, Part]
    family: str
    certificate: Certificate | None
    findings: list[Finding]
    advice: list[Advice]
    model: dict[str, Any]
    settings: dict[str, Any]
    shape: tuple[int, int, int]

    @property
    def summary(self) -> pd.DataFrame:
        """Rows of all parts, with the part as the first level of the index."""
        import pandas as pd

        return pd.concat({name: part.summary for name, part in self.parts.items()}, names=["images", "quantity"])

    def __repr__(self) -> str:
        from vaegap.report import text

        return text(self)

    def to_html(self, path: str | Path | None = None) -> str:
        """The report as one HTML page that needs nothing else; written to `path` if one is given."""
        from vaegap.report_html import page

        out = page(self)
        if path is not None:
            Path(path).write_text(out, encoding="utf-8")
        return out

    def to_json(self, path: str | Path | None = None) -> str:
        """The whole result as JSON, which `from_json` reads back; written to `path` if one is given."""
        parts = {}
        for name, part in self.parts.items():
            fields = {k: v for k, v in vars(part).items() if k not in ("table", "errors", "worst", "refined")}
            fields |= {"images": part.table.index.tolist(), "worst": [asdict(p) for p in part.worst]}
            fields |= {"refined": part.refined and asdict(part.refined)}
            fields |= {k: {c: getattr(part, k)[c].tolist() for c in part.table} for k in ("table", "errors")}
            parts[name] = fields
        out = {
            "schema": _SCHEMA,
            "unit": "nats per image",
            "model": self.model,
            "settings": self.settings,
            "shape": list(self.shape),
            "family": self.family,
            "certificate": self.certificate and asdict(self.certificate),
            "findings": [asdict(f) for f in self.findings],
            "advice": [asdict(a) for a in self.advice],
            "parts": parts,
        }
        written = json.dumps(_plain(out), indent=1, allow_nan=False)
        if path is not None:
            Path(path).write_text(written + "\n", encoding="utf-8")
        return written

    @classmethod
    def from_json(cls, written: str) -> Audit:
        """Read back what `to_json` wrote.

        Raises:
            InputError: it is no such thing, or of another version.
        """
        try:
            raw = json.loads(written)
        except ValueError as error:
            raise InputError(f"this is no JSON: {error}") from None
        if not isinstance(raw, dict) or raw.get("schema") != _SCHEMA:
            raise InputError(f"this is no audit of schema {_SCHEMA}; run `vaegap audit` again with this version")
        try:
            return cls._restored(raw)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"this audit is damaged ({type(error).__name__}: {error}); run it again") from None

    @classmethod
    def _restored(cls, raw: dict[str, Any]) -> Audit:
        import pandas as pd

        parts = {}
        for name, fields in raw["parts"].items():
            index = pd.Index(fields.pop("images"), name="image")
            tables = {k: pd.DataFrame(_numbers(fields.pop(k)), index=index) for k in ("table", "errors")}
            parts[name] = Part(
                **tables,
                khat=_numbers(fields["khat"]),
                khat_encoder=_numbers(fields["khat_encoder"]),
                iwae=_numbers(fields["iwae"]),
                activity=_numbers(fields["activity"]),
                missed={int(k): v for k, v in fields["missed"].items()},
                stuck={int(k): v for k, v in fields["stuck"].items()},
                worst=[Picture(**_numbers(p)) for p in fields["worst"]],
                refined=Refinement(**_numbers(fields["refined"])) if fields["refined"] else None,
                source=fields.get("source", "ais"),
                beyond=_numbers(fields.get("beyond", 0.0)),
                activity_best=_numbers(fields.get("activity_best", [])),
                unsettled={int(k): v for k, v in fields.get("unsettled", {}).items()},
            )
        return cls(
            parts,
            raw["family"],
            Certificate(**_numbers(raw["certificate"])) if raw["certificate"] else None,
            [Finding(**f) for f in raw["findings"]],
            [Advice(**{k: v if k in ("kind", "text") else _numbers(v) for k, v in a.items()}) for a in raw["advice"]],
            raw["model"],
            raw["settings"],
            (raw["shape"][0], raw["shape"][1], raw["shape"][2]),
        )


def _plain(value: Any) -> Any:
    """JSON knows no infinity and no NaN: they are written as text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):  # numpy's numbers
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return float(value) if isinstance(value, str) else value
