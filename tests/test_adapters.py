"""Programs and models of other packages give the same numbers through an adapter."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from somebody import LATENT, D, Dense, same_elbo
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from vaegap import InputError, elbo, wrap
from vaegap.adapters import FastDecoderVAE, as_model, from_functions, from_pythae
from vaegap.energy import LogJoint
from vaegap.lab.weights import read_program


def test_a_plain_decoder_gets_hand_written_gradients(model: Dense, x: Tensor) -> None:
    slow = wrap(model.encode, lambda z: model.decoder(z), LATENT)
    fast = from_functions(model.encode, model.decoder, x)
    assert isinstance(fast, FastDecoderVAE)
    assert fast.latent_dim == LATENT
    same_elbo(fast, slow, x)
    z = torch.randn(4, len(x), LATENT)
    assert LogJoint(fast, x).layers is not None
    assert torch.allclose(LogJoint(fast, x).grad(z), LogJoint(slow, x).grad(z), atol=1e-4)


def test_torchscript(model: Dense, x: Tensor, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript; files remain
        scripted = torch.jit.trace_module(model, {"encode": x, "decode": torch.zeros(7, LATENT)})
        scripted.save(tmp_path / "vae.pt")
    vae = as_model(read_program(tmp_path / "vae.pt"), x)
    same_elbo(vae, wrap(model.encode, model.decode, LATENT), x)


def test_torch_export(model: Dense, x: Tensor, exported: tuple[Path, Path]) -> None:
    vae = as_model(tuple(read_program(path) for path in exported), x)
    same_elbo(vae, wrap(model.encode, model.decode, LATENT), x)


def test_a_program_that_was_exported_for_one_batch_size_says_how_to_export_it(model: Dense, x: Tensor) -> None:
    encoder, decoder = (
        torch.export.export(module, (torch.zeros(4, size),)).module()
        for module, size in ((model.encoder, D), (model.decoder, LATENT))
    )
    with pytest.raises(InputError, match=r"encoder failed .* dynamic_shapes"):
        as_model((encoder, decoder), x)
    with pytest.raises(InputError, match=r"decoder failed .* dynamic_shapes"):
        elbo(as_model((model.encoder, decoder), x), x, 2)


def test_pythae(x: Tensor) -> None:
    pythae = pytest.importorskip("pythae.models", reason="pythae is not installed: pip install 'vaegap[pythae]'")
    torch.manual_seed(0)
    for loss in ("bce", "mse"):
        config = pythae.VAEConfig(input_dim=(1, 3, 4), latent_dim=2, reconstruction_loss=loss)
        model = pythae.VAE(config)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            model({"data": x.view(-1, 1, 3, 4)})["loss"].backward()
            optimizer.step()
        vae = from_pythae(model)
        with torch.no_grad():
            losses = torch.stack([model({"data": x.view(-1, 1, 3, 4)})["loss"] for _ in range(2000)])
        constant = 0.0 if loss == "bce" else -0.5 * D * math.log(2 * math.pi)  # pythae leaves it out
        ours = elbo(vae, x, 2000, seed=0)
        error = math.hypot(ours.mcse, losses.std().item() / math.sqrt(len(losses)))
        assert abs(ours.mean - (constant - losses.mean().item())) < 5 * error + 1e-3
        assert isinstance(vae, FastDecoderVAE) == (loss == "bce")
    with pytest.raises(InputError, match="use vaegap.wrap"):
        from_pythae(pythae.AE(pythae.AEConfig(input_dim=(1, 3, 4), latent_dim=2)))


def test_a_pythae_model_says_itself_what_it_is() -> None:
    pythae = pytest.importorskip("pythae.models", reason="pythae is not installed: pip install 'vaegap[pythae]'")
    model = pythae.VAE(pythae.VAEConfig(input_dim=(1, 3, 4), latent_dim=2, reconstruction_loss="mse"))
    assert from_pythae(model, scale=0.1).likelihood.scale == 0.1
    with pytest.raises(InputError, match="leave out data_shape, encoder_scale"):
        as_model(model, torch.zeros(1, D), data_shape=(1, 3, 4), encoder_scale="logvar")


def test_a_pair_or_a_module_may_have_another_prior(model: Dense, x: Tensor) -> None:
    """Its size is the one that the encoder tells."""
    prior = Independent(Normal(torch.zeros(LATENT), torch.full((LATENT,), 2.0)), 1)
    wrapped = wrap(model.encode, model.decode, LATENT, prior=prior)
    for thing in ((model.encode, model.decode), model):
        vae = as_model(thing, x, prior=prior)
        assert vae.prior is prior
        same_elbo(vae, wrapped, x)
    with pytest.raises(InputError, match="event shape"):
        as_model(model, x, prior=Independent(Normal(torch.zeros(2), torch.ones(2)), 1))


def test_what_is_no_model_is_refused(x: Tensor) -> None:
    with pytest.raises(InputError, match="cannot be audited as it is"):
        as_model(nn.Linear(2, 2), x)


def test_sizes_that_do_not_fit_a_plain_decoder_are_told_with_their_cure(model: Dense, x: Tensor) -> None:
    """Its fast copy has to have the same shapes; a decoder that does not fit gets none, and the wrapper says why."""
    too_many = as_model(wrap(model.encode, model.decoder, LATENT + 1), x)
    with pytest.raises(InputError, match=f"does latent_dim={LATENT + 1} match the decoder"):
        elbo(too_many, x, 2)
    odd = as_model(wrap(model.encode, nn.Linear(LATENT, 2 * D + 1), LATENT, "gaussian", scale=None), x)
    with pytest.raises(InputError, match=f"gives {2 * D + 1} numbers an image; gaussian pixels need {2 * D}"):
        elbo(odd, x, 2)


def test_the_latent_size_may_be_said_to_an_audit(model: Dense, x: Tensor) -> None:
    said = as_model((model.encode, model.decoder), x, latent_dim=LATENT)
    assert said.latent_dim == LATENT
    same_elbo(said, as_model((model.encode, model.decoder), x), x)
    with pytest.raises(InputError, match=f"does latent_dim={LATENT + 1} match the decoder"):
        elbo(as_model((model.encode, model.decoder), x, latent_dim=LATENT + 1), x, 2)
