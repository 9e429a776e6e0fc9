"""Streams of log-weights."""

from __future__ import annotations

import torch

from vaegap import VAE
from vaegap.weights import controlled_log_weights


def test_turns_between_two_streams_of_weights_leave_no_mode_behind() -> None:
    """Gradients and training stay on for whoever compares two posteriors, image group by image group."""
    vae = VAE(6, 2, encoder_hidden=(4,), decoder_hidden=(4,), seed=0).train()
    x = torch.ones(3, 6)
    q = vae.encode(x).detach()
    for _ in zip(*(controlled_log_weights(vae, x, 4, q, seed=0) for _ in range(2)), strict=True):
        assert torch.is_grad_enabled()
    assert torch.is_grad_enabled() and all(m.training for m in vae.modules())
