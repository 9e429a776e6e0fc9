"""Records of certificates: what is computed anew from the weights agrees, and changed weights are noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from kept_weights import changed_and_lost_weights_are_noticed

from vaegap.lab import experiments, verify

SMALL = {"num_simulated": 4, "num_images": 4, "prior_temperatures": [5, 1000], "encoder": [20], "decoder": [20]}


pytestmark = pytest.mark.usefixtures("short_training")


def test_verify(tmp_path: Path) -> None:
    record = experiments.run("certificates", SMALL, "laptop", tmp_path)
    ways = set(record.select(metric="bdmc_width")["model"])
    assert len(ways) == 5, "at equal cost, too"
    verdict = verify.verify_record(record)
    assert verdict.state == "agrees", verdict
    assert verdict.rows == 4 + 3, "all widths but that of a thousand temperatures, and three estimates of log p(x)"
    changed_and_lost_weights_are_noticed(record, factor=1.5)


def test_estimators_meet_the_oracles(tmp_path: Path) -> None:
    """All are lower bounds of the known log p(x), the one from q* is right where q* can be, and 25 temperatures from
    the prior stay below it."""
    record = experiments.run(
        "certificates", {**SMALL, "num_images": 20, "prior_temperatures": [100]}, "quick", tmp_path
    )
    for oracle in ("oracle, linear-Gaussian", "oracle, two latents"):
        rows = record.select(split=oracle, metric="log_p_error").set_index("model")[["value", "mcse"]]
        for way, (error, mcse) in rows.iterrows():
            assert error < 5 * mcse + 1e-3, f"{way} is a lower bound"
    linear = record.select(split="oracle, linear-Gaussian").set_index("model")["value"]
    assert abs(linear["AIS from q*_full"]) < 1e-3
    assert linear["AIS from the prior, linear, 25 temperatures"] < linear["AIS from q*_full"] - 1
