"""The zoo: trained once, found again; weights at milestones outlive everything but their deletion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vaegap import VAE, InputError
from vaegap.lab import provenance, training, zoo
from vaegap.lab.training import Schedule
from vaegap.lab.zoo import ModelSpec, trained

EPOCHS = 4


@pytest.fixture(autouse=True)
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[training.TrainResult]:
    """Small data and a short schedule that saves after every epoch; collects what trainings were made."""
    made: list[training.TrainResult] = []
    images = zoo.training_images("mnist-5k", 200)

    def noted(*args: Any, **kwargs: Any) -> training.TrainResult:
        made.append(training.train(*args, **{**kwargs, "checkpoint_seconds": -1.0, "progress": False}))
        return made[-1]

    monkeypatch.setattr(ModelSpec, "schedule", property(lambda self: Schedule(EPOCHS, 50)))
    monkeypatch.setattr(zoo, "training_images", lambda dataset, num_images=None: images)
    monkeypatch.setattr(zoo, "train", noted)
    return made


SPEC = ModelSpec("mnist-5k", latent_dim=2, encoder=(8,), decoder=(8,))
Seen = list[tuple[int, dict[str, Tensor]]]


def watch(folder: Path, milestones: tuple[int, ...] = (1, 3), stop: int = 0) -> Seen:
    """What on_milestone is given; with `stop`, the computation dies while it measures that epoch."""
    seen: Seen = []

    def measure(epoch: int, vae: VAE) -> None:
        assert not vae.training
        if epoch == stop:
            raise KeyboardInterrupt
        seen.append((epoch, vae.state_dict()))

    trained(SPEC, folder, milestones, measure)
    return seen


def same(one: Seen, two: Seen) -> bool:
    return [e for e, _ in one] == [e for e, _ in two] and all(
        torch.equal(v, b[k]) for (_, a), (_, b) in zip(one, two, strict=True) for k, v in a.items()
    )


def test_every_milestone_is_given_on_every_call(tmp_path: Path, trainings: list[training.TrainResult]) -> None:
    first = watch(tmp_path)
    assert [epoch for epoch, _ in first] == [1, 3]
    assert not same(first[:1], [(1, first[1][1])]), "they differ from each other"
    assert same(watch(tmp_path), first)
    with pytest.raises(KeyboardInterrupt):
        watch(tmp_path, stop=3)
    assert same(watch(tmp_path), first)
    assert len(trainings) == 1, "a finished training is not repeated"
    assert (tmp_path / "unfinished" / f"{SPEC.id}-epoch3.safetensors").is_file()


def test_cut_off_after_a_milestone(
    tmp_path: Path, trainings: list[training.TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = watch(tmp_path / "whole")
    epoch = training._Training.epoch

    def dies(self: Any, x: Tensor, number: int) -> float:
        if number == 2:
            raise KeyboardInterrupt
        return epoch(self, x, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training._Training, "epoch", dies)
        watch(tmp_path / "cut")
    assert same(watch(tmp_path / "cut"), whole)
    assert trainings[-1].resumed_from == 2


def test_lost_weights_of_a_milestone_are_trained_again(tmp_path: Path, trainings: list[training.TrainResult]) -> None:
    first = watch(tmp_path)
    (tmp_path / "unfinished" / f"{SPEC.id}-epoch1.safetensors").unlink()
    assert same(watch(tmp_path), first)
    assert len(trainings) == 2
    assert trainings[-1].resumed_from == 0


def test_the_models_end_does_not_depend_on_milestones(tmp_path: Path) -> None:
    watch(tmp_path / "one")
    (one, _), (two, _) = trained(SPEC, tmp_path / "one"), trained(SPEC, tmp_path / "two")
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    assert not one.training


def test_milestones_beyond_the_end(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="between 1 and 4"):
        watch(tmp_path, (1, 5))


def test_weights_tell_which_code_trained_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, meta = trained(SPEC, tmp_path)
    modules = provenance.training_modules()
    assert zoo.origin_of(meta)["digest"] == provenance.science_digest(modules)[:12]
    assert "commit" in zoo.origin_of(meta)
    trained(SPEC, tmp_path)
    assert "trained before" not in capsys.readouterr().err
    changed = {**provenance.science_modules(), "vaegap.lab.training": "other", "vaegap.annealing": "other"}
    monkeypatch.setattr(provenance, "science_modules", lambda: changed)
    trained(SPEC, tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{SPEC.id}.safetensors: trained before vaegap.lab.training changed; delete it" in said


def test_weights_of_older_versions_know_no_code() -> None:
    assert zoo.origin_of({"history": []}) == {"commit": None, "dirty": None, "digest": None}
