"""Figures: gap ladders, bands over epochs, posterior contours. One style, safe for colour-blind readers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vaegap.exact import Quadrature
    from vaegap.posteriors import Posterior

__all__ = ["COLORS", "LABELS", "contours", "gap_bands", "gap_bars", "gap_ladder", "use_style"]

COLORS = {"approximation": "#0072B2", "amortization": "#E69F00", "log_p": "#009E73", "L_q": "#D55E00"}
"""Okabe and Ito's palette."""

_LABEL_POINTS = 16  # from one label of 9 points to the next, subscripts and room included

LABELS = {
    "log_p": r"$\log \hat p(x)$",
    "L_q": r"$\mathcal{L}[q]$",
    "L_star_gaussian": r"$\mathcal{L}[q^*_{FFG}]$",
    "L_star_full_gaussian": r"$\mathcal{L}[q^*_{full}]$",
    "L_star_flow": r"$\mathcal{L}[q^*_{flow}]$",
    "L_star_aux_flow": r"$\mathcal{L}[q^*_{AF}]$",
    "L_star_flow_on_z": r"$\mathcal{L}[q^*_{flow\ on\ z}]$",
    "L_star_blind_aux_flow": r"$\mathcal{L}[q^*_{blind\ AF}]$",
    "L_star_spline": r"$\mathcal{L}[q^*_{spline}]$",
}


def use_style() -> None:
    """Use the book's matplotlib style."""
    import matplotlib.pyplot as plt

    plt.style.use(Path(__file__).with_name("figures.mplstyle"))


def _axes(ax: Axes | None, **size: Any) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    use_style()
    return plt.subplots(layout="constrained", **size)[1]


def gap_ladder(summary: pd.DataFrame, family: str = "gaussian", ax: Axes | None = None, *, decimals: int = 2) -> Axes:
    """log p̂, L[q*] of every family and L[q] as levels, with the two gaps of one family as bars between them.

    Args:
        summary: as `Gaps.summary`.
        family: whose gaps are drawn.
        ax: where; None for a new figure.
        decimals: of the levels; fewer where the summary is rounded.
    """
    ax = _axes(ax, figsize=(5.2, 3.2))
    levels = [name for name in LABELS if name in summary.index]
    values = [float(summary.loc[name, "mean"]) for name in levels]
    span = max(values) - min(values)
    bottom, top = min(values) - 0.08 * span, max(values) + 0.08 * span
    bars = ((0.25, "approximation", "log_p", f"L_star_{family}"), (0.75, "amortization", f"L_star_{family}", "L_q"))
    words = []  # under the axis, where no bar and no level can lie
    for x, gap, upper, lower in bars:
        high, low = summary.loc[upper, "mean"], summary.loc[lower, "mean"]
        hatch = "//" if gap == "amortization" else None
        ax.bar(x, high - low, 0.3, low, color=COLORS[gap], hatch=hatch, edgecolor="white")
        row = summary.loc[f"{gap}_{family}"]
        words.append(f"{gap}\n{row['mean']:.2f} nats\n[{row['ci_low']:.2f}, {row['ci_high']:.2f}]")
    ax.set(xlim=(0, 1), ylabel="nats per image", ylim=(bottom, top))
    ax.set_xticks([x for x, *_ in bars], words, fontsize=8)
    ax.tick_params(axis="x", length=0)
    texts = [
        ax.annotate(
            f"{LABELS[name]} = {value:.{decimals}f}", (1.0, value),
            xycoords=("axes fraction", "data"), xytext=(1.06, value), textcoords=("axes fraction", "data"), va="center",
            fontsize=9, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "0.5", "lw": 0.6, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)},
        )
        for name, value in zip(levels, values, strict=True)
    ]  # fmt: skip
    # The layout tells how much room there is: words that would touch stand below each other, labels are moved apart.
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    left, right = (label.get_window_extent() for label in ax.get_xticklabels())
    if left.x1 + 4 > right.x0:
        ax.set_xticks([x for x, *_ in bars], [words[0], "\n\n\n" + words[1]])
        figure.draw_without_rendering()
    points = ax.get_window_extent().height * 72 / figure.dpi
    heights = _apart(values, _LABEL_POINTS * (top - bottom) / points, bottom)
    for name, value, height, text in zip(levels, values, heights, texts, strict=True):
        ax.axhline(value, color="0.5", lw=1, ls="-" if name in ("log_p", "L_q", f"L_star_{family}") else ":", zorder=0)
        text.set_y(height)
    return ax


def _apart(values: Sequence[float], least: float, bottom: float) -> list[float]:
    """Heights for labels of these values: in the same order, `least` apart, and above `bottom` if there is room.

    Crowded labels move down; where the lowest would leave the axes, the lower ones are stacked on `bottom` instead.
    """
    order = sorted(range(len(values)), key=lambda i: -values[i])
    heights = list(values)
    for above, below in zip(order, order[1:], strict=False):
        heights[below] = min(heights[below], heights[above] - least)
    floor = bottom
    for i in reversed(order):
        heights[i] = max(heights[i], floor)
        floor = heights[i] + least
    return heights


def gap_bars(
    rows: Mapping[str, tuple[float, float]],
    errors: Mapping[str, tuple[float, float]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Stacked approximation and amortization gaps, one bar a model.

    Args:
        rows: model -> (approximation, amortization), nats.
        errors: model -> half widths of their intervals.
        ax: where.
    """
    ax = _axes(ax, figsize=(1.6 + 1.1 * len(rows), 3.2))
    first, second = zip(*rows.values(), strict=True)
    half = [(errors or {}).get(name, (math.nan, math.nan)) for name in rows]  # NaN: no error bar
    below, above = zip(*half, strict=True)
    ax.bar(range(len(rows)), first, 0.6, color=COLORS["approximation"], label="approximation", yerr=below, ecolor="0.4")
    ax.bar(
        range(len(rows)), second, 0.6, first, color=COLORS["amortization"], hatch="//", edgecolor="white",
        label="amortization", yerr=above, ecolor="0.4",
    )  # fmt: skip
    ax.set(xticks=range(len(rows)), ylabel="gap, nats per image")
    ax.set_xticklabels(list(rows), fontsize=8)
    ax.set_ylim(top=1.35 * ax.get_ylim()[1])  # room for the legend above the bars
    ax.legend(frameon=False, loc="upper left", fontsize=8)
    return ax


def gap_bands(
    epochs: Sequence[float],
    log_p: Sequence[float],
    best: Sequence[float],
    amortized: Sequence[float],
    ax: Axes | None = None,
) -> Axes:
    """Bands between log p̂, L[q*] and L[q] over epochs (the paper's figure on generalization)."""
    ax = _axes(ax, figsize=(4, 3))
    ax.fill_between(epochs, best, log_p, color=COLORS["approximation"], alpha=0.5, label="approximation")
    pale = "#F2CF80"  # the colour half way to white; opaque, for in SVG a pattern fades with what it fills
    ax.fill_between(epochs, amortized, best, facecolor=pale, hatch="//", lw=0, label="amortization")
    levels = (log_p, "-", LABELS["log_p"]), (best, "--", r"$\mathcal{L}[q^*]$"), (amortized, ":", LABELS["L_q"])
    for values, style, name in levels:
        ax.plot(epochs, values, style, color="0.4", lw=1, label=f"_{name}")  # for `describing`, not for the legend
    ax.set(xlabel="epoch", ylabel="nats per image")
    ax.legend(frameon=False, loc="lower right")
    return ax


def contours(
    truth: Quadrature,
    posteriors: Mapping[str, Posterior],
    images: torch.Tensor | None = None,
    titles: Sequence[str] = (),
) -> Figure:
    """The true posterior (filled) under each approximation's contours, a column an image and a row a posterior.

    Args:
        truth: the true posteriors on their grids.
        posteriors: name -> posterior with a tractable density, of the same images.
        images: pictures (N, H, W) for the top row.
        titles: column titles.
    """
    import matplotlib.pyplot as plt

    use_style()
    count, names = len(truth.log_p), list(posteriors)
    top = images is not None
    fig, axes = plt.subplots(
        len(names) + top, count, figsize=(1.9 * count, 1.9 * (len(names) + top)), squeeze=False, layout="constrained"
    )
    size = truth.axes.shape[1]
    for j in range(count):
        if images is not None:
            axes[0, j].imshow(images[j], cmap="gray_r")
            axes[0, j].set_axis_off()
        if titles:
            axes[0, j].set_title(titles[j], fontsize=9)
        first, second = truth.axes[j, :, 0], truth.axes[j, :, 1]
        density = truth.log_posterior[j].exp().T
        for i, name in enumerate(names):
            ax = axes[i + top, j]
            with torch.no_grad():
                log_q = posteriors[name].log_prob(truth.grid().to(posteriors[name].params["mean"].dtype))[:, j]
            q = log_q.double().exp().view(size, size).T
            ax.contourf(first, second, density, levels=_levels(density), cmap="Greys", alpha=0.6)
            ax.contour(first, second, q, levels=_levels(q), colors=COLORS["approximation"], linewidths=1)
            near = density > density.max() * 1e-3
            for axis, grid, mask in (("x", first, near.any(0)), ("y", second, near.any(1))):
                inside = grid[mask]
                pad = 0.35 * float(inside[-1] - inside[0]) + 1e-3
                getattr(ax, f"set_{axis}lim")(float(inside[0]) - pad, float(inside[-1]) + pad)
            ax.locator_params(nbins=3)  # few and large: legible on a phone, too
            ax.tick_params(labelsize=9)
            if j == 0:
                ax.set_ylabel(name, fontsize=12)
    return fig


def _levels(density: torch.Tensor) -> list[float]:
    """Heights that enclose 95, 80, 50 and 20 % of the mass, and the top."""
    flat = density.flatten().sort(descending=True).values
    mass = flat.cumsum(0) / flat.sum()
    heights = [float(flat[int((mass < share).sum().clamp(max=len(flat) - 1))]) for share in (0.95, 0.8, 0.5, 0.2)]
    return sorted({*heights, float(flat[0]) * (1 + 1e-6)})
