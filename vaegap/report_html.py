"""The report of an audit as one HTML page: pictures inside, no request to anywhere."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from vaegap.advice import FAMILY_WORDS
from vaegap.report import facts, interval, levels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vaegap.audited import Audit, Part

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; } caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #8886; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.gap td, tr.gap th { font-weight: 600; }
.scroll { overflow-x: auto; }
img { max-width: 100%; background: white; }
li { margin: .4rem 0; } .cure { display: block; }
.warning { border-left: .3rem solid #D55E00; padding-left: .7rem; list-style: none; }
.note { border-left: .3rem solid #0072B2; padding-left: .7rem; list-style: none; }
.small { font-size: .85rem; }
"""


def page(audit: Audit) -> str:
    """The whole page.

    Args:
        audit: the result.

    Returns:
        HTML with its style and its pictures inside.
    """
    m, s = audit.model, audit.settings
    title = f"Audit of {m['name']}"
    counts = ", ".join(f"{len(p.table)} {name}" for name, p in audit.parts.items())
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{m['latent_dim']} latents, {m['pixels']} pixels, {escape(m['likelihood'])} likelihood, prior "
        f"{escape(m['prior'])}, {m['parameters']:,} parameters, {escape(m['dtype'])} on {escape(m['device'])}. "
        f"Images: {escape(counts)}. All numbers are nats per image, in brackets 95 % intervals over images.</p>",
        _findings(audit),
        "<h2>What would help</h2>",
        _advice(audit),
        "<h2>Where the nats go</h2>",
        f'<div class="scroll">{_table(audit)}</div>',
        *(_image(_ladder(audit, part), f"Levels and gaps, {name}") for name, part in audit.parts.items()),
        "<h2>How far to trust it</h2>",
        _facts(audit),
        "<p>log p̂ is the largest of annealed importance sampling and importance sampling from q*, and of annealing "
        "from the prior where missed modes are looked for: a lower bound on log p(x). The BDMC width bounds the error "
        "of annealing from q* on images simulated from the model. Approximation = log p̂ − L[q*], "
        "amortization = L[q*] − L[q], where q* is the best member of the family for each image.</p>",
    ]
    for name, part in audit.parts.items():
        if part.worst:
            body += [f"<h2>Images with the largest gaps, {escape(name)}</h2>"]
            body += [_image(_pictures(audit, part), f"Images with the largest gaps, {name}: above the image, below the "
                            "decoder's mean at q's mean")]  # fmt: skip
    settings = ", ".join(f"{k} {v}" for k, v in s.items())
    body.append(f'<p class="small">Settings: {escape(settings)}.</p>')
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _findings(audit: Audit) -> str:
    if not audit.findings:
        return ""
    items = "".join(
        f'<li class="{f.severity}"><b>{f.severity.capitalize()}:</b> {escape(f.message)}.'
        f'<span class="cure">Cure: {escape(f.cure)}.</span></li>'
        for f in audit.findings
    )
    return f"<ul>{items}</ul>"


def _advice(audit: Audit) -> str:
    items = []
    for a in audit.advice:
        what = "measured" if a.measured else "at most"
        gain = f"<b>{what} {a.gain:.2f} nats</b> [{a.low:.2f}, {a.high:.2f}]: " if a.gain else ""
        items.append(f"<li>{gain}{escape(a.text)}.</li>")
    return f"<ol>{''.join(items)}</ol>"


def _table(audit: Audit) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in audit.parts)
    summaries = [part.summary for part in audit.parts.values()]
    rows = []
    for column, label in levels(audit):
        cells = ""
        for summary in summaries:
            r = summary.loc[column]
            cells += f'<td class="n" title="Monte-Carlo error {r["mcse"]:.3f}">{interval(r)}</td>'
        kind = ' class="gap"' if column == "inference" else ""
        rows.append(f'<tr{kind}><th scope="row">{escape(label)}</th>{cells}</tr>')
    return (
        f'<table><caption>Nats per image</caption><thead><tr><th scope="col">quantity</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _facts(audit: Audit) -> str:
    rows = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in facts(audit))
    return f'<div class="scroll"><table>{rows}</table></div>'


def _image(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="{escape(alt)}" src="data:image/png;base64,{data}"></p>'


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    return Figure(figsize=(width, height), layout="constrained")


def _ladder(audit: Audit, part: Part) -> Figure:
    from vaegap.figures import gap_ladder

    figure = _figure(6.5, 3.6)
    gap_ladder(part.summary, audit.family, ax=figure.subplots())
    return figure


def _pictures(audit: Audit, part: Part) -> Figure:
    figure = _figure(1.7 * len(part.worst) + 0.3, 4.2)
    axes = np.atleast_2d(figure.subplots(2, len(part.worst), squeeze=False))
    for i, picture in enumerate(part.worst):
        row = part.table.loc[picture.image]
        for ax, values in zip(axes[:, i], (picture.pixels, picture.reconstruction), strict=True):
            _draw(ax, np.asarray(values), audit.shape)
        axes[0, i].set_title(
            f"image {picture.image}\nlog p̂ {row['log_p']:.1f}\napprox. {row[f'approximation_{audit.family}']:.1f}\n"
            f"amort. {row[f'amortization_{audit.family}']:.1f}",
            fontsize=8,
        )
    axes[0, 0].set_ylabel("image", fontsize=8)
    axes[1, 0].set_ylabel(f"decoder at q's mean\n({FAMILY_WORDS.get(audit.family, audit.family)})", fontsize=8)
    return figure


def _draw(ax: Axes, values: np.ndarray, shape: tuple[int, int, int]) -> None:
    ax.set(xticks=[], yticks=[])
    channels, height, width = shape
    if height == 1:
        ax.plot(values, lw=1, color="#0072B2")
        return
    picture: Any = values.reshape(channels, height, width).transpose(1, 2, 0)
    top = max(float(picture.max()), 1e-9)
    picture = np.clip((picture - min(float(picture.min()), 0)) / (top - min(float(picture.min()), 0)), 0, 1)
    ax.imshow(picture if channels == 3 else picture[:, :, 0], cmap="gray_r" if channels == 1 else None, vmin=0, vmax=1)
