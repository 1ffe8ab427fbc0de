"""The denoiser: a finite, measured receptive field, no statistics over space, and its files."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from microdiffusion_fast.denoiser import (
    ALIGN,
    CONTEXT,
    FORMAT,
    SHIPPED,
    Denoiser,
    DenoiserConfig,
    Geometry,
    grown,
    load_denoiser,
    save_denoiser,
)
from microdiffusion_fast.errors import InputError

TINY = DenoiserConfig(encoder_widths=(8, 8, 8), head_width=8, head_blocks=1, embedding=16)
GEOMETRY = Geometry(6, 6, axial_blur=1.0)


def randomised(config: DenoiserConfig = TINY, *, gain: float = 1.0, seed: int = 0) -> Denoiser:
    """A network none of whose layers is zero, as after training."""
    denoiser = Denoiser(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * (gain * fan_in**-0.5 if parameter.ndim > 1 else 0.3))
    return denoiser.eval()


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) * 2 - 1).to(dtype)


@torch.no_grad()
def one_slice(
    denoiser: Denoiser, projections: Tensor, state: Tensor, prior: Tensor, base: Tensor
) -> Tensor:
    """The slice [Y, X] in the middle of the middle window."""
    features = denoiser.encode(projections, GEOMETRY)
    middle = len(projections) // 2
    return denoiser.denoise(
        features[middle : middle + 1],
        state[None],
        prior[None],
        base[None],
        base.new_tensor([0.5]),
        GEOMETRY,
        base.new_tensor([[0.6, 0.8, 0.1]]),
    )[0][0]


def inputs(size: tuple[int, int], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes = {"projections": 5, "state": 3, "prior": 3, "base": 1}
    made = {
        name: noise(n, *size, seed=seed, dtype=dtype)
        for seed, (name, n) in enumerate(shapes.items())
    }
    return made | {"base": made["base"][0]}


def reach(denoiser: Denoiser, name: str, place: int, side: int) -> int:
    """How far, in pixels, a change of one pixel at (place, place) is felt at all."""
    before = inputs((side, side), torch.float64)
    after = {key: value.clone() for key, value in before.items()}
    after[name].view(-1, side, side)[-1 if name == "base" else 1, place, place] += 3.0
    changed = one_slice(denoiser, **before) != one_slice(denoiser, **after)
    distances = changed.nonzero() - place
    assert changed[place, place]
    return int(distances.abs().max())


@pytest.mark.parametrize(("quarter", "head"), [(3, 4), (1, 1), (4, 4)])
def test_lateral_receptive_field_of_the_projections(quarter: int, head: int) -> None:
    """Nothing beyond the halo changes by a single bit, whichever pixel of a 4 x 4 cell it is.

    Narrow, for speed; float64 and large weights, so that the faint rim of the field shows.
    """
    config = DenoiserConfig((8, 8, 8), quarter_blocks=quarter, head_width=8, head_blocks=head)
    denoiser = randomised(config, gain=3.0).double()
    side = 2 * config.halo + 24
    reaches = [reach(denoiser, "projections", side // 2 + phase, side) for phase in range(ALIGN)]
    # the bound is no idle one: the field is nearly as large
    assert config.halo - 2 * ALIGN <= max(reaches) <= config.halo
    assert config.halo % ALIGN == 0
    assert DenoiserConfig().halo == 56


@pytest.mark.parametrize(("name", "least"), [("state", 7), ("prior", 7), ("base", 7)])
def test_lateral_receptive_field_of_the_slices(name: str, least: int) -> None:
    denoiser = randomised(DenoiserConfig(encoder_widths=(8, 8, 8), head_width=8)).double()
    assert least <= reach(denoiser, name, 32, 64) <= denoiser.config.halo


def test_a_grown_network_is_the_same_function() -> None:
    small = randomised()
    larger = grown(small, replace(TINY, quarter_blocks=5, head_blocks=2))
    values = inputs((16, 16))
    torch.testing.assert_close(one_slice(larger, **values), one_slice(small, **values))
    assert sum(p.numel() for p in larger.parameters()) > sum(p.numel() for p in small.parameters())
    with pytest.raises(InputError, match="^start_from: expected a network that"):
        grown(larger, TINY)


def test_axial_receptive_field() -> None:
    """A window's features depend on CONTEXT projections to either side, and on no others."""
    denoiser = randomised()
    stack = noise(9, 8, 8)
    changed = stack.clone()
    changed[4] += 1.0
    with torch.no_grad():
        before, after = denoiser.encode(stack, GEOMETRY), denoiser.encode(changed, GEOMETRY)
    for window in range(9):
        same = torch.equal(before[window], after[window])
        assert same == (abs(window - 4) > CONTEXT), window


def test_state_and_prior_are_seen_as_three_slices() -> None:
    denoiser = randomised()
    before = inputs((16, 16))
    for name in ("state", "prior"):
        for slice_ in range(3):
            after = {key: value.clone() for key, value in before.items()}
            after[name][slice_, 8, 8] += 1.0
            assert not torch.equal(one_slice(denoiser, **before), one_slice(denoiser, **after))


def test_a_tile_equals_the_crop_of_the_whole() -> None:
    """No statistics over space: a tile with its halo gives what the whole image gives there."""
    denoiser = randomised(DenoiserConfig(encoder_widths=(8, 8, 8), head_width=8))
    halo, core = denoiser.config.halo, 16
    side = 2 * halo + core + 40
    whole = inputs((side, side))
    # something bright far away, which any mean over the image would feel
    whole["projections"][:, :8, :8] = 50.0
    top, left = 5 * ALIGN, 9 * ALIGN
    rows, columns = (slice(o, o + core + 2 * halo) for o in (top, left))
    tile = {name: value[..., rows, columns] for name, value in whole.items()}
    inner = slice(halo, halo + core)
    expected = one_slice(denoiser, **whole)[rows, columns][inner, inner]
    got = one_slice(denoiser, **tile)[inner, inner]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 10), (13, 8), (11, 15)])
def test_sizes_that_are_no_multiple_of_align(size: tuple[int, int]) -> None:
    """They are padded by repetition: the same as an image that repeats its last row and column."""
    denoiser = randomised()
    stack = noise(3, *size)
    down, across = -size[0] % ALIGN, -size[1] % ALIGN
    padded = torch.cat([stack, stack[:, -1:].expand(-1, down, -1)], dim=1)
    padded = torch.cat([padded, padded[:, :, -1:].expand(-1, -1, across)], dim=2)
    with torch.no_grad():
        got, whole = (denoiser.encode(x, GEOMETRY) for x in (stack, padded))
    assert got.shape == (3, 8, *size)
    torch.testing.assert_close(got, whole[:, :, : size[0], : size[1]], rtol=0, atol=1e-6)
    assert one_slice(denoiser, **inputs(size)).shape == size


def test_the_ends_of_a_stack_repeat_their_last_projection() -> None:
    denoiser = randomised()
    stack = noise(4, 8, 8)
    longer = torch.cat([stack[:1], stack[:1], stack, stack[-1:], stack[-1:]])
    with torch.no_grad():
        got, inner = denoiser.encode(stack, GEOMETRY), denoiser.encode(longer, GEOMETRY)[2:-2]
    torch.testing.assert_close(got, inner, rtol=0, atol=1e-6)


def test_encoding_does_not_depend_on_the_batch() -> None:
    denoiser = randomised()
    stack = noise(7, 12, 8)
    with torch.no_grad():
        one, all_ = (denoiser.encode(stack, GEOMETRY, batch=batch) for batch in (1, 100))
    torch.testing.assert_close(one, all_, rtol=0, atol=1e-5)


def test_a_fresh_network_is_interpolation() -> None:
    given = inputs((12, 12))
    assert torch.equal(one_slice(Denoiser(TINY), **given), given["base"])


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Geometry(4, 6, 1.0), id="step length"),
        pytest.param(Geometry(6, 4, 1.0), id="stride"),
        pytest.param(Geometry(6, 6, 2.0), id="axial blur"),
        pytest.param(Geometry(6, 6, 1.0, 0.7), id="spread of the weights"),
    ],
)
def test_the_network_is_told_the_geometry(other: Geometry) -> None:
    denoiser = randomised()
    stack = noise(3, 8, 8)
    with torch.no_grad():
        assert not torch.allclose(denoiser.encode(stack, GEOMETRY), denoiser.encode(stack, other))


# --- files ---


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    denoiser = randomised()
    save_denoiser(path, denoiser, {"recipe": "by hand"})
    loaded = load_denoiser(path)
    assert loaded.config == TINY
    assert not loaded.training
    before, after = denoiser.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    given = inputs((12, 12))
    assert torch.equal(one_slice(denoiser, **given), one_slice(loaded, **given))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        assert file.metadata()["recipe"] == "by hand"


def write_checkpoint(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)


def valid() -> tuple[dict[str, Tensor], dict[str, str]]:
    metadata = {"format": FORMAT, "config": json.dumps(asdict(TINY))}
    return dict(randomised().state_dict()), metadata


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        load_denoiser(path)
    assert error.value.argument == "denoiser"
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_checkpoint(tmp_path: Path) -> None:
    assert "absent.safetensors" in refused(tmp_path / "absent.safetensors")
    refused(tmp_path)  # a folder


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_checkpoint(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "net.safetensors"
    save_denoiser(path, randomised())
    path.write_bytes(path.read_bytes()[:keep])
    refused(path)


def test_damaged_header(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_denoiser(path, randomised())
    content = bytearray(path.read_bytes())
    content[8:40] = b"\xff" * 32
    path.write_bytes(content)
    refused(path)


def test_pickle_is_refused_unread(tmp_path: Path) -> None:
    path, trace = tmp_path / "net.safetensors", tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (trace,)

    torch.save({"weights": Payload()}, path)
    refused(path)
    assert not trace.exists()


@pytest.mark.parametrize("metadata", [{}, {"format": "another/1"}, {"format": FORMAT + "0"}])
def test_wrong_format(tmp_path: Path, metadata: dict[str, str]) -> None:
    tensors, good = valid()
    write_checkpoint(tmp_path / "net.safetensors", tensors, {"config": good["config"], **metadata})
    assert FORMAT in refused(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        pytest.param("not JSON", id="not JSON"),
        pytest.param("null", id="null"),
        pytest.param("[]", id="list"),
        pytest.param("{}", id="empty"),
        pytest.param(json.dumps({**asdict(TINY), "heads": 3}), id="unknown option"),
        pytest.param(json.dumps({**asdict(TINY), "head_width": 16}), id="another width"),
        pytest.param(json.dumps({**asdict(TINY), "head_width": "8"}), id="text"),
        pytest.param(json.dumps({**asdict(TINY), "head_width": -8}), id="negative"),
        pytest.param(json.dumps({**asdict(TINY), "encoder_widths": [8, 8]}), id="two widths"),
        pytest.param(json.dumps({**asdict(TINY), "head_blocks": 2}), id="more blocks"),
    ],
)
def test_wrong_configuration(tmp_path: Path, config: str) -> None:
    tensors, metadata = valid()
    write_checkpoint(tmp_path / "net.safetensors", tensors, {**metadata, "config": config})
    refused(tmp_path / "net.safetensors")


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_wrong_tensors(tmp_path: Path, change: str) -> None:
    tensors, metadata = valid()
    name = "head.conv_out.weight"
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors["head.more"] = torch.zeros(3)
    else:
        tensors[name] = tensors[name][:, :4]
    write_checkpoint(tmp_path / "net.safetensors", tensors, metadata)
    refused(tmp_path / "net.safetensors")


def test_failed_save_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.safetensors"
    save_denoiser(path, randomised())
    before = path.read_bytes()

    def full_disk(target: Path, content: bytes) -> None:
        with target.open("wb") as file:
            file.write(content[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_denoiser(path, randomised(seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_shipped_weights() -> None:
    assert SHIPPED.stat().st_size < 20e6
    denoiser = load_denoiser()
    assert denoiser.config == DenoiserConfig()
    assert all(bool(value.isfinite().all()) for value in denoiser.state_dict().values())
    given = inputs((16, 16))
    result = one_slice(denoiser, **given)
    assert bool(result.isfinite().all())
    assert not torch.allclose(result, given["base"], atol=1e-3)  # it was trained
