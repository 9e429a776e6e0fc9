"""Checkpoints: what goes in comes out, and whatever is not a whole checkpoint is refused with the cure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vaegap.lab import checkpoints
from vaegap.lab.errors import CheckpointError


def sample() -> dict[str, torch.Tensor]:
    base = torch.arange(12.0).reshape(3, 4)
    return {
        "strided": base.T,
        "shared": base,
        "half": torch.tensor([1.5, float("nan"), float("inf")], dtype=torch.bfloat16),
        "scalar": torch.tensor(7),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "rng": torch.get_rng_state(),
    }


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path, before = tmp_path / "deep" / "c.safetensors", sample()
    checkpoints.save(path, before, {"epoch": 3, "lr": 1e-3, "names": ["a"], "none": None})
    after, meta = checkpoints.load(path)
    assert meta == {"epoch": 3, "lr": 1e-3, "names": ["a"], "none": None}
    assert list(after) == sorted(before)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name].nan_to_num(), tensor.nan_to_num())
    assert [p.name for p in path.parent.iterdir()] == ["c.safetensors"]


def test_random_numbers_go_on(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    checkpoints.save(tmp_path / "c", {"rng": generator.get_state()})
    expected = torch.randn(5, generator=generator)
    other = torch.Generator()
    other.set_state(checkpoints.load(tmp_path / "c")[0]["rng"])
    assert torch.equal(torch.randn(5, generator=other), expected)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, -1])
def test_truncated(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "c.safetensors"
    checkpoints.save(path, sample(), {"epoch": 1})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=f"(?s){path}.*rm {path}") as caught:
        checkpoints.load(path)
    assert caught.value.__suppress_context__


def test_published_weights_are_got_back_and_not_deleted(tmp_path: Path) -> None:
    for folder, published in (("models", True), ("_work/run", False)):
        path = tmp_path / folder / "m.safetensors"
        checkpoints.save(path, sample())
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(CheckpointError, match="is truncated") as caught:
            checkpoints.load(path)
        assert (f"git checkout -- m.safetensors, in {path.parent}" in str(caught.value)) is published


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    checkpoints.save(path, {"w": torch.arange(3.0)}, {"epoch": 7, "history": [1.5, 2.5]})
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            tensors, meta = checkpoints.load(path)
        except CheckpointError:
            continue
        assert meta == {"epoch": 7, "history": [1.5, 2.5]}
        assert tensors["w"].tolist() == [0, 1, 2]


def test_foreign_files(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "theirs.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path / "pickle.pt")
    (tmp_path / "text").write_text(json.dumps({"a": 1}) * 20)
    with pytest.raises(CheckpointError, match="did not write"):
        checkpoints.load(tmp_path / "theirs.safetensors")
    for name in ("pickle.pt", "text"):
        with pytest.raises(CheckpointError, match="no safetensors file"):
            checkpoints.load(tmp_path / name)
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoints.load(tmp_path / "absent")


def test_model_round_trip(tmp_path: Path) -> None:
    models = pytest.importorskip("vaegap.models")
    vae = models.VAE(latent_dim=3, encoder_hidden=(8,), decoder_hidden=(8,), seed=1)
    checkpoints.save_model(tmp_path / "m.safetensors", vae, {"epochs": 2})
    again = checkpoints.load_model(tmp_path / "m.safetensors")
    x = (torch.rand(4, 784) > 0.5).float()
    z = torch.randn(2, 4, 3)
    assert torch.equal(vae.log_joint(x, z), again.log_joint(x, z))
    assert again.config == vae.config
    checkpoints.save(tmp_path / "other", {"w": torch.ones(1)})
    with pytest.raises(CheckpointError, match="no model"):
        checkpoints.load_model(tmp_path / "other")
    checkpoints.save(tmp_path / "old", {"w": torch.ones(1)}, {"model": vae.config})
    with pytest.raises(CheckpointError, match="another version"):
        checkpoints.load_model(tmp_path / "old")


def test_names_come_back_in_one_order(tmp_path: Path) -> None:
    """The order within the file differs from writing to writing, and would become that of a record's rows."""
    names = [f"name{i:02d}" for i in range(30)]
    for attempt in range(3):
        path = tmp_path / f"{attempt}.safetensors"
        checkpoints.save(path, {name: torch.zeros(1) for name in reversed(names)}, {})
        assert list(checkpoints.load(path)[0]) == names


def test_the_cure_can_be_pasted_where_a_folder_has_a_space(tmp_path: Path) -> None:
    path = tmp_path / "my results" / "c.safetensors"
    checkpoints.save(path, {"w": torch.zeros(9)})
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=f"rm '{path}'"):
        checkpoints.load(path)
