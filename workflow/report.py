"""Print what the quick run measured, from its record: bounds and gaps in nats per image, each with its errors."""

from __future__ import annotations

import sys

from vaegap import paired
from vaegap.lab import experiments, protocols, runs

LABELS = {
    "log_p": "log p̂(x)",
    "L_star_gaussian": "L[q*]",
    "L_q": "L[q]",
    "approximation_gaussian": "approximation gap",
    "amortization_gaussian": "amortization gap",
    "inference": "inference gap",
}


def main() -> int:
    """The table of notebooks/quickstart.ipynb."""
    run = experiments.identify("gap_decomposition", profile="quick")
    record = runs.find(run)
    if record is None:
        print(f"There is no record of {run}. Cure: make reproduce", file=sys.stderr)
        return 1
    for split, name in (("train", "training"), ("test", "held-out")):
        summary = paired.summarize(*protocols.gap_tables(record, split=split))
        print(f"\n   {summary['num_images'].iloc[0]} {name} images    mean ± Monte Carlo error   95 % over images")
        for metric, label in LABELS.items():
            row = summary.loc[metric]
            interval = f"[{row['ci_low']:7.2f}, {row['ci_high']:7.2f}]"
            print(f"   {label:<20} {row['mean']:13.3f} ± {row['mcse']:.3f}     {interval}")
    width, error = record.select(metric="bdmc_width")[["value", "mcse"]].iloc[0]
    print(f"\n   log p̂(x) is certified from both sides on simulated images: BDMC width {width:.3f} ± {error:.3f}")
    print(f"   All in nats per image. {record.caption()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
