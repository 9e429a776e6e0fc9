"""Records of certificates: what is computed anew from the weights agrees, and changed weights are noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from kept_weights import changed_and_lost_weights_are_noticed

from vaegap.lab import experiments, verify

SMALL = {"num_simulated": 4, "num_images": 4, "prior_temperatures": [5, 1000], "encoder": [20], "decoder": [20]}


@pytest.mark.usefixtures("short_training")
def test_verify(tmp_path: Path) -> None:
    record = experiments.run("certificates", SMALL, "laptop", tmp_path)
    ways = set(record.select(metric="bdmc_width")["model"])
    assert len(ways) == 4
    verdict = verify.verify_record(record)
    assert verdict.state == "agrees", verdict
    assert verdict.rows == 3 + 3, "all widths but that of a thousand temperatures, and three estimates of log p(x)"
    changed_and_lost_weights_are_noticed(record, factor=1.5)
