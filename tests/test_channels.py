"""Images with their channels at the wrong end are refused where shapes tell, noticed where numbers do, else left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vaegap import InputError, audit, wrap
from vaegap.channels import check_axes, layout_readings
from vaegap.picturing import drawing_order, picture_shape

QUICK = {"certify": 0, "num_samples": 20, "num_images": 4, "check_modes": False, "families": "gaussian"}
SHAPE = (3, 8, 8)


class Painter(nn.Module):
    """Somebody's VAE of small colour pictures, which takes them as (N, 3, 8, 8) or, if flat, as rows of that."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.flat = flat
        self.down = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
        self.up = nn.Linear(2, 192)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.down(x.unflatten(1, SHAPE) if self.flat else x).chunk(2, -1)

    def decode(self, z: Tensor) -> Tensor:
        return self.up(z)


def painted(num: int, seed: int = 0) -> Tensor:
    """Pictures (num, 3, 8, 8), each channel a ramp of its own."""
    a, b = torch.randn(2, num, 1, 1, generator=torch.Generator().manual_seed(seed))
    axis = torch.linspace(-1, 1, 8)
    flat = torch.zeros(num, 8, 8)
    wall = torch.stack([flat + a * axis, flat + b * axis[:, None], flat + 1], 1)
    return wall + 0.1 * torch.randn(num, *SHAPE, generator=torch.Generator().manual_seed(seed + 1))


@pytest.fixture(scope="module")
def trained() -> Painter:
    torch.manual_seed(0)
    net, x = Painter(), painted(200)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        mean, logvar = net.encode(x)
        out = net.decode(mean + (logvar / 2).exp() * torch.randn_like(mean))
        loss = (out - x.flatten(1)).square().sum() / 0.18 + 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def test_axes_in_another_order_are_refused_with_the_line_that_mends_them(trained: Painter) -> None:
    vae = wrap(trained.encode, trained.decode, 2, "gaussian", data_shape=SHAPE, scale=0.3)
    x = painted(6)
    with pytest.raises(InputError, match=r"\(N, 8, 8, 3\).*scrambled.*movedim\(-1, 1\)"):
        audit(vae, x.movedim(1, -1), **QUICK)
    with pytest.raises(InputError, match=r"x\.movedim\(-1, 1\)"):
        audit(trained, x.movedim(1, -1), likelihood="gaussian", scale=0.3, data_shape=SHAPE, **QUICK)
    with pytest.raises(InputError, match=r"heldout = heldout\.movedim\(-1, 1\)"):
        audit(vae, x, x.movedim(1, -1), **QUICK)
    with pytest.raises(InputError, match=r"x\.movedim\(1, -1\)"):
        check_axes(SHAPE, (8, 8, 3))
    with pytest.raises(InputError, match="permute"):
        check_axes((20, 28), (1, 28, 20))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((192,), SHAPE), (SHAPE, None), ((8, 8, 1), (1, 8, 8)), ((8, 8), (1, 8, 8)), (SHAPE, SHAPE), ((), SHAPE),
     ((3, 64), SHAPE), ((4, 4, 4), (4, 4, 4))],
)  # fmt: skip
def test_axes_that_are_no_mistake(given: tuple[int, ...], wanted: tuple[int, ...] | None) -> None:
    check_axes(given, wanted)


def test_an_encoder_that_fails_on_a_shape_says_which_one_to_give(trained: Painter) -> None:
    options = {"likelihood": "gaussian", "scale": 0.3, **QUICK}
    with pytest.raises(InputError, match=r"say data_shape=\(3, 8, 8\)\.$"):
        audit(trained, painted(6), **options)
    with pytest.raises(InputError, match=r"say data_shape=\(3, 8, 8\)\. Your images are \(N, 8, 8, 3\).*movedim"):
        audit(trained, painted(6).movedim(1, -1), **options)
    with pytest.raises(InputError, match=r"say data_shape=\(3, 8, 8\)\. Your images are \(N, 8, 8, 3\).*movedim"):
        audit(trained, painted(6).movedim(1, -1), data_shape=(8, 8, 3), **options)
    with pytest.raises(InputError, match=r"wrap\(data_shape=\(C, H, W\)\) is given\.$"):
        audit(trained, painted(6).flatten(1), **options)


@pytest.mark.parametrize("handed", ["pictures", "rows"])
def test_scrambled_rows_are_noticed_by_their_bound(trained: Painter, handed: str) -> None:
    """The encoder was given no layout, takes rows, and cannot fail on them."""
    flat = Painter(flat=True)
    flat.load_state_dict(trained.state_dict())
    vae = wrap(flat.encode, flat.decode, 2, "gaussian", scale=0.3)
    wrong = painted(40, seed=7).movedim(1, -1)
    shape = (8, 8, 3) if handed == "pictures" else None
    (found,) = layout_readings(vae, wrong.flatten(1), shape, SHAPE)
    assert found.severity == "warning"
    mended = eval(found.cure.split(" as ")[1].split(";")[0], {"x": wrong.flatten(1)})
    assert torch.equal(mended, painted(40, seed=7))
    assert layout_readings(vae, painted(40, seed=7).flatten(1), SHAPE) == []


def test_rows_that_a_model_takes_with_channels_last_are_no_mistake() -> None:
    """A plain MLP that was trained on rows (H, W, C) is right as it is; and an untrained model has no preference."""
    x = painted(100).movedim(1, -1)
    mean = x.flatten(1).mean(0)
    encoder, decoder = nn.Linear(192, 4), nn.Linear(2, 192)
    with torch.no_grad():
        decoder.bias.copy_(mean)
    assert layout_readings(wrap(encoder, decoder, 2, "gaussian", scale=0.5), x.flatten(1), (8, 8, 3)) == []
    for seed in range(5):
        torch.manual_seed(seed)
        net = Painter(flat=True)
        vae = wrap(net.encode, net.decode, 2, "gaussian", scale=0.3 + seed)
        assert layout_readings(vae, painted(64, seed).flatten(1), SHAPE) == []
    assert layout_readings(vae, torch.rand(5, 192), (192,), (1, 1, 192)) == []


def test_the_audit_warns_first_of_a_scrambled_set(trained: Painter) -> None:
    flat = Painter(flat=True)
    flat.load_state_dict(trained.state_dict())
    wrong = painted(30, seed=7).movedim(1, -1)
    result = audit(flat, wrong, likelihood="gaussian", scale=0.3, **(QUICK | {"num_images": 20}))
    assert result.findings[0].kind == "layout"
    # the report's pictures have their channels first, whatever order the rows have
    assert result.shape == SHAPE
    picture = result.parts["images"].worst[0]
    shown = torch.tensor(picture.pixels).reshape(SHAPE)
    assert torch.allclose(shown, painted(30, seed=7)[picture.image], atol=1e-4)


def test_pictures_of_one_channel_that_comes_last() -> None:
    assert picture_shape(560, (28, 20, 1)) == (1, 28, 20)
    assert picture_shape(192, (8, 8, 3)) == SHAPE
    assert torch.equal(drawing_order(6, (2, 3, 1), None), torch.arange(6))
