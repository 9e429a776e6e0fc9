"""The command `vaegap audit`: models, weights and images from files, and one clear message where they are no good."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from somebody import binary
from torch import nn
from typer.testing import CliRunner

from vaegap import VAE, Audit, load_images
from vaegap.lab.checkpoints import save, save_model
from vaegap.lab.cli import app
from vaegap.lab.weights import read_images

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 8), nn.ELU(), nn.Linear(8, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 16))

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)


def make_vae():
    torch.manual_seed(0)
    return Net()


def wrapped():
    import vaegap
    return vaegap.wrap(make_vae().encode, make_vae().decode, 2)


def pythae():
    from pythae.models import VAE, VAEConfig
    return VAE(VAEConfig(input_dim=(1, 4, 4), latent_dim=2, reconstruction_loss="mse"))


def demanding(size, depth=3):
    return Net()


def failing():
    return {}["net"]


def leaving():
    raise SystemExit("bye")
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    np.save(tmp_path / "images.npy", binary(12, 16).numpy().astype(np.uint8).reshape(12, 4, 4))
    np.save(tmp_path / "grey.npy", (255 * binary(12, 16)).numpy().astype(np.uint8))
    return tmp_path


SHORT = ["--certify", "5", "--num-images", "8", "--no-modes"]


def test_the_command_audits_a_python_file(files: Path) -> None:
    words = [f"{files}/model.py:make_vae", "--data", f"{files}/images.npy", "--out", f"{files}/r.html",
             "--json", f"{files}/r.json", *SHORT]  # fmt: skip
    result = CliRunner().invoke(app, ["audit", *words])
    assert result.exit_code == 0, result.output
    assert "amortization gap" in result.output
    assert (files / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert len(Audit.from_json((files / "r.json").read_text()).parts["images"].table) == 8


def test_the_command_audits_weights_with_and_without_code(files: Path) -> None:
    torch.manual_seed(1)
    sizes = {"encoder.0": (16, 8), "encoder.2": (8, 4), "decoder.0": (2, 8), "decoder.2": (8, 16)}
    state = {}
    for name, (inputs, outputs) in sizes.items():
        layer = nn.Linear(inputs, outputs)
        state |= {f"{name}.weight": layer.weight.data, f"{name}.bias": layer.bias.data}
    save_file(state, files / "w.safetensors")
    data = ["--data", f"{files}/grey.npy", "--threshold", "127.5", "--checkpoint", f"{files}/w.safetensors", *SHORT]
    outputs = []
    for more in ([], ["--activation", "elu"], [f"{files}/model.py:make_vae"]):
        result = CliRunner().invoke(app, ["audit", *more, *data])
        assert result.exit_code == 0, result.output
        outputs.append([line for line in result.output.splitlines() if line.startswith("L[q] (the ELBO)")])
    assert outputs[1] == outputs[2]
    assert "the weights do not say which activation" in CliRunner().invoke(app, ["audit", *data]).output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.py:make_vae", "--data", "grey.npy"], "not binary"),
        (["model.py:none", "--data", "images.npy"], "it has: Net, make_vae, wrapped"),
        (["model.py", "--data", "images.npy"], "name the function"),
        (["--data", "images.npy"], "give a model"),
        (["nothing.py:make", "--data", "images.npy"], "there is no file"),
        (["--checkpoint", "images.npy", "--data", "images.npy"], "cannot be read|stays shut"),
    ],
)
def test_the_command_says_what_is_wrong(files: Path, words: list[str], says: str, monkeypatch) -> None:
    monkeypatch.chdir(files)
    result = CliRunner().invoke(app, ["audit", *words])
    assert result.exit_code == 2
    assert re.search(says, result.output), result.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.py:make_vae", "--families", "gaussian,flwo"], "unknown posterior families 'flwo'"),
        (["model.py:make_vae", "--out", "nowhere/r.html"], "no folder nowhere"),
        (["model.py:make_vae", "--json", "."], "is a folder"),
        (["model.py:make_vae", "--out", "images.npy"], "named twice"),
        (["model.py:make_vae", "--json", "model.py"], "named twice"),
        (["model.py:make_vae", "--out", "r", "--json", "r"], "named twice"),
        (["model.py:make_vae", "--threshold", "nan"], "all pixels equal"),
        (["model.py:make_vae", "--threshold", "2"], "all pixels equal.*between 0 and 1"),
        (["model.py:make_vae", "--seed", str(2**70)], "seed"),
        (["model.py:make_vae", "--data-shape", "1,x"], "whole numbers"),
        (["model.py:make_vae", "--data-shape", "1,5,5"], "has 25 pixels"),
        (["model.py:make_vae", "--activation", "elu"], "without code"),
        (["model.py:make_vae", "--encoder", "images.npy"], "leave out MODEL"),
        (["model.py:make_vae", "--noise", "0.1"], "say --likelihood gaussian"),
        (["model.py:wrapped", "--likelihood", "bernoulli"], "leave out likelihood"),
        (["model.py:demanding"], "needs size"),
        (["model.py:failing"], r"\(model.py, line 39\) with KeyError: 'net'"),
        (["model.py:leaving"], "SystemExit: bye"),
        (["broken.py:make"], r"broken.py, line 2\) with SyntaxError"),
        (["--checkpoint", "bad.safetensors"], "no safetensors file, or damaged"),
        (["model.py:make_vae", "--data", "bad.npy"], r"Write it with numpy\.save$"),
    ],
)
def test_the_command_says_so_before_any_work(files: Path, words: list[str], says: str, monkeypatch) -> None:
    monkeypatch.chdir(files)
    Path("broken.py").write_text("x = 1\ndef make( :\n")
    for name in ("bad.safetensors", "bad.npy"):
        Path(name).write_bytes(b"neither this nor that")
    result = CliRunner().invoke(app, ["audit", *([] if "--data" in words else ["--data", "images.npy"]), *words])
    assert result.exit_code == 2
    assert re.search(says, result.output.strip()), result.output


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 16
    path.write_bytes(bytes(data))


def test_foreign_and_damaged_files_are_one_message(files: Path, monkeypatch) -> None:
    monkeypatch.chdir(files)
    save_model("model.safetensors", VAE(latent_dim=2, data_shape=(1, 4, 4), encoder_hidden=(8,), decoder_hidden=(8,)))
    flipped(Path("model.safetensors"))
    save_file({}, "none.safetensors")
    save_file({"a": torch.ones(4, 16), "b": torch.ones(4, 16)}, "two.safetensors")
    save_file({"w": torch.ones(2)}, "hello.safetensors", {"vaegap": "hello"})
    save_file({"w": torch.ones(2)}, "other.safetensors", {"vaegap": '{"a": 1}'})
    save("config.safetensors", {"w": torch.ones(2)}, {"config": {"colour": "red"}})
    with pytest.warns(FutureWarning):
        torch.jit.script(nn.Linear(2, 2)).save("program.pt")
    whole = Path("program.pt").read_bytes()
    Path("program.pt").write_bytes(whole[:64] + bytes(800) + whole[864:])  # the archive's list of names is its end
    for words, says in (
        (["--checkpoint", "model.safetensors"], "is damaged"),
        (["model.py:make_vae", "--data", "none.safetensors"], r"0 tensors \(none\)"),
        (["model.py:make_vae", "--data", "two.safetensors"], r"2 tensors \(a, b\)"),
        (["--checkpoint", "hello.safetensors"], "is damaged"),
        (["--checkpoint", "other.safetensors"], "is damaged"),
        (["--checkpoint", "config.safetensors"], "does not know"),
        (["program.pt"], "may be damaged"),
    ):
        result = CliRunner().invoke(app, ["audit", *([] if "--data" in words else ["--data", "images.npy"]), *words])
        assert result.exit_code in (1, 2) and re.search(says, result.output), (words, result.output, result.exception)


@pytest.mark.parametrize("kind", [">f4", "longdouble", ">u2", "bool"])
def test_numbers_of_every_kind_are_images(kind: str, tmp_path: Path) -> None:
    values = np.arange(12).reshape(3, 4) % 2
    np.save(tmp_path / "x.npy", values.astype(kind))
    assert np.array_equal(read_images(tmp_path / "x.npy").numpy().astype(int), values)


def test_a_report_goes_through_a_pipe_or_a_full_disk(files: Path) -> None:
    words = ["audit", f"{files}/model.py:make_vae", "--data", f"{files}/images.npy", *SHORT]
    result = CliRunner().invoke(app, [*words, "--json", "/dev/full"])
    assert result.exit_code == 1 and "disk is full" in result.output, result.output
    assert not Path("/dev/full").is_file()
    assert "amortization gap" in result.output, "the report itself is not lost"


def test_a_model_may_import_what_lies_beside_it_at_any_time(files: Path) -> None:
    (files / "beside.py").write_text("SCALE = 1.0\n")
    late = MODEL.replace(
        "        return self.encoder(x)", "        import beside\n        return beside.SCALE * self.encoder(x)"
    )
    (files / "late.py").write_text("import sys\nsys.path.insert(0, 'mine')\n" + late)
    words = ["audit", f"{files}/late.py:make_vae", "--data", f"{files}/images.npy", *SHORT]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "mine" in sys.path
    sys.path.remove("mine")


def test_the_command_leaves_to_a_pythae_model_what_it_says_itself(files: Path) -> None:
    pytest.importorskip("pythae.models", reason="pythae is not installed: pip install 'vaegap[pythae]'")
    words = ["audit", f"{files}/model.py:pythae", "--data", f"{files}/images.npy", *SHORT]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "gaussian likelihood" in result.output
    result = CliRunner().invoke(app, [*words, "--data-shape", "1,4,4"])
    assert result.exit_code == 2
    assert "leave out data_shape" in result.output


def test_an_audit_needs_no_extra(files: Path) -> None:
    """Everything but the base package's own dependencies is made unimportable."""
    code = f"""
    import sys

    names = set("pyarrow torchvision mlxtend papermill ipykernel yaml zuko seaborn jupyter_book sphinx snakemake "
                "great_tables pythae nbval hypothesis sklearn IPython".split())

    class Without:
        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, path=None, target=None):
            return None if name.split(".")[0] in names else self.finder.find_spec(name, path, target)

    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
    from vaegap.lab.cli import app
    app(["audit", "{files}/model.py:make_vae", "--data", "{files}/images.npy", "--out", "{files}/r.html",
         "--json", "{files}/r.json", "--certify", "5", "--num-images", "8"])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (files / "r.html").is_file()


# ---- speed ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_six_layers_trained_elsewhere_are_audited_in_two_minutes(tmp_path: Path) -> None:
    """784-200-200-100 and 50-200-200-784 with ELU, in layers fc1 to fc6, on 100 images."""
    from vaegap.lab.training import Schedule, train

    images = load_images("mnist-5k", "train")
    vae = VAE((1, 28, 28), 50, seed=0)
    train(vae, images.x, Schedule(20, 50, lr=3e-3), seed=0, progress=False)
    linears = [m for part in (vae.features, vae.head, vae.decoder) for m in part.modules() if isinstance(m, nn.Linear)]
    state = {}
    for i, layer in enumerate(linears, 1):
        state |= {f"fc{i}.weight": layer.weight.detach(), f"fc{i}.bias": layer.bias.detach()}
    save_file(state, tmp_path / "elsewhere.safetensors")
    np.save(tmp_path / "images.npy", images.x.numpy())
    begin = time.process_time()
    result = CliRunner().invoke(app, ["audit", "--checkpoint", str(tmp_path / "elsewhere.safetensors"), "--data",
                                      str(tmp_path / "images.npy"), "--json", str(tmp_path / "r.json")])  # fmt: skip
    seconds = time.process_time() - begin
    assert result.exit_code == 0, result.output
    found = Audit.from_json((tmp_path / "r.json").read_text())
    assert found.certificate is not None
    assert found.certificate.width <= 0.1
    assert len(found.parts["images"].table) == 100
    assert seconds < 2 * 120  # of both cores together; wall time would depend on what else runs
