"""The grid through Snakemake's SLURM executor, on a real SLURM: workflow/slurm-local.sh, on this machine's loopback.

Slow, and only where Snakemake, its SLURM plugin and Debian's SLURM packages are installed and we are root:
    SNAKEMAKE=.venv-cluster/bin/snakemake pytest -m slow tests/test_slurm.py
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_lab
from grid_lab import wait_for
from test_snakemake import PROFILES, ROOT, Project, content, diamond, find_snakemake, toy

from vaegap.lab import experiments, locks, runs

pytestmark = pytest.mark.slow
SCRIPT = ROOT / "workflow/slurm-local.sh"
# Jobs of some seconds: look for their end soon, and let them wait side by side in little memory
QUICK = ["--slurm-init-seconds-before-status-checks", "10", "--set-resources", "job:mem_mb=1500"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    """A SLURM of our own, with two GPUs that are only counted."""
    find_snakemake()
    if os.geteuid() or not (shutil.which("slurmctld") and shutil.which("slurmdbd")):
        pytest.skip("needs root and SLURM: apt-get install slurm-wlm slurmdbd mariadb-server munge")
    if Path("/etc/slurm/slurm.conf").exists():
        pytest.skip("there is a SLURM on this machine already; stop it with workflow/slurm-local.sh stop")
    folder = Path(tempfile.mkdtemp(prefix="vaegap-slurm-"))  # not pytest's own: munge wants folders others can enter
    folder.chmod(0o755)
    environment = os.environ | {"SLURM_LOCAL_DIR": str(folder), "SLURM_LOCAL_GPUS": "2"}
    done = subprocess.run([str(SCRIPT), "start"], env=environment, capture_output=True, text=True, timeout=240)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield folder
    finally:
        stopped = subprocess.run([str(SCRIPT), "stop"], env=environment, capture_output=True, text=True, timeout=120)
        shutil.rmtree(folder, ignore_errors=True)
    assert stopped.returncode == 0, stopped.stderr
    assert not Path("/etc/slurm/slurm.conf").is_symlink()


def profile_of(name: str) -> list[str]:
    (folder,) = [path for path in PROFILES if path.name == name]
    return ["--profile", str(folder)]


def accounted() -> list[str]:
    """State and allocated resources of the jobs that SLURM has run, in their order."""
    command = ["sacct", "-X", "-n", "-P", "-D", "--format=State,AllocTRES"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_grid_through_slurm_leaves_the_same_records(slurm: Path, tmp_path: Path) -> None:
    project = Project(tmp_path, diamond())
    earlier = len(accounted())
    code, output = project.snakemake(*profile_of("slurm"), *QUICK, timeout=580)
    assert code == 0, output
    project.built_in(tmp_path / "other")
    assert len(content(project.results)) == 4
    assert content(project.results) == content(tmp_path / "other")
    jobs = accounted()[earlier:]
    assert len(jobs) == 5, jobs
    assert all(line.startswith("COMPLETED") and "cpu=1" in line for line in jobs), jobs
    code, output = project.snakemake(*profile_of("slurm"), *QUICK)
    assert (code, "Nothing to be done" in output) == (0, True), output


def test_killed_slurm_jobs_are_submitted_again_and_go_on(slurm: Path, tmp_path: Path) -> None:
    """The first attempt is ended by scancel, the second by kill -9 of the process that computes."""
    project = Project(tmp_path, {"slow": toy("laptop", seed=1, steps=60, pause=0.3)})
    earlier = len(accounted())
    work, log = project.results / "_work", tmp_path / "snakemake.log"
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            project.command(*profile_of("slurm"), *QUICK, profile="laptop"),
            env=project.environment(project.results), stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_for(lambda: step_of(work) >= 3, 120)
        running = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True)
        subprocess.run(["scancel", running.stdout.strip()], check=True)
        wait_for(lambda: computing(work) is None, 60)
        reached = step_of(work)
        wait_for(lambda: step_of(work) > reached, 120)
        who = computing(work)
        assert who is not None
        os.kill(who.pid, signal.SIGKILL)
        process.wait(300)
    finally:
        process.kill()
    assert process.returncode == 0, log.read_text()
    (record,) = runs.list_records(project.results)
    assert record.info["attempts"] == 3
    whole = experiments.run(toy_lab.TOY, {"seed": 1, "steps": 60}, "laptop", tmp_path / "whole")
    assert record.value("total") == whole.value("total")
    states = [line.split("|")[0].split()[0] for line in accounted()[earlier:]]
    assert states == ["CANCELLED", "FAILED", "COMPLETED"]


def computing(work: Path) -> locks.Holder | None:
    """The process that computes the run now."""
    return next((who for lock in work.glob("toy*/lock") if (who := locks.holder(lock)) is not None), None)


def step_of(work: Path) -> int:
    """How far the toy's checkpoint is."""
    paths = list(work.glob("toy*/checkpoint.json"))
    return int(json.loads(paths[0].read_text())[1]) if paths else 0


def test_gpu_profile_asks_for_a_gpu(slurm: Path, tmp_path: Path) -> None:
    project = Project(tmp_path, {"one": toy()})
    earlier = len(accounted())
    code, output = project.snakemake(*profile_of("slurm-gpu"), *QUICK, timeout=580)
    assert code == 0, output
    (job,) = accounted()[earlier:]
    assert job.startswith("COMPLETED")
    assert "gres/gpu=1" in job
