"""The posterior explorer without a browser: torch's numbers in `model.js` are right, and core.js in node agrees."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow"))
from export_explorer import OUT, elbo, read, reference  # noqa: E402

SCRIPT = """
global.window = {};
require(process.argv[1] + "/model.js");
const core = require(process.argv[1] + "/core.js"), data = window.VAEGAP_MODEL, m = core.model(data);
const table = core.emptyTable(m), out = [];
core.addRows(m, table, core.tabulate(m, 0, core.SIDE));
core.bits(data.images, m.pixels).forEach((x, digit) => {
  if (digit % 3 !== 1) return;
  const p = core.project(m, x), post = core.posterior(m, table, p), climb = {};
  let q = core.encode(m, x), bound = core.elbo(m, p, q), steps = [bound.value];
  for (let next; steps.length < 400 && (next = core.ascend(m, p, q, bound, climb)) && next.gain > 1e-7; ) {
    ({ q, bound } = next);
    steps.push(bound.value);
  }
  const decoded = Array.from(core.decode(m, q.mean));
  out.push({ digit, log_p: post.logp, elbo: steps[0], best: bound.value, steps, decoded, at: q.mean });
});
console.log(JSON.stringify(out));
"""


def test_the_reference_is_what_torch_says():
    vae, x, data = read()
    chosen = [0, 7, 19]
    again = reference(vae, x[chosen])
    for name, values in again.items():
        old = torch.tensor([data["reference"][name][i] for i in chosen], dtype=torch.float64)
        assert torch.allclose(torch.tensor(values, dtype=torch.float64), old, atol=1e-4, rtol=0), name


def test_the_quadrature_agrees_with_samples():
    vae, x, _ = read()
    vae, x = vae.double(), x[:6].double()
    q = vae.encode(x).detach()
    mean, sd = q.moments()
    with torch.no_grad():
        z, log_q = q.rsample_and_log_prob(4000, generator=torch.Generator().manual_seed(0))
        terms = vae.log_joint(x, z) - log_q
        exact = elbo(vae, x, mean, sd.log())
    assert ((terms.mean(0) - exact).abs() < 5 * terms.std(0) / 4000**0.5).all()


def test_the_script_is_small_and_its_levels_are_in_order():
    assert OUT.stat().st_size < 1e6
    ref = read()[2]["reference"]
    for top, best, own in zip(ref["log_p"], ref["best"], ref["elbo"], strict=True):
        assert top > best > own


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_core_agrees_with_torch():
    done = subprocess.run(["node", "-e", SCRIPT, str(OUT.parent)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    vae, x, data = read()
    for ours in json.loads(done.stdout):
        for name in ("log_p", "elbo", "best"):
            assert abs(ours[name] - data["reference"][name][ours["digit"]]) < 1e-3, (ours["digit"], name)
        assert all(a < b for a, b in zip(ours["steps"], ours["steps"][1:], strict=False))
        with torch.no_grad():
            picture = vae.decoder_params(torch.tensor(ours["at"], dtype=torch.float32)).sigmoid()
        assert torch.allclose(picture, torch.tensor(ours["decoded"]), atol=1e-4)
