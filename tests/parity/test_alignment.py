"""The alignment terms, LPIPS and its layers against recordings of the published losses (`vf_loss/`)."""

import zlib

import numpy as np
import torch

from alight.losses import marginal_cosine_loss, marginal_distance_matrix_loss
from alight.models.perceptual import LPIPS


def test_alignment_terms(read_case):
    tensors, description = read_case("vf_loss/terms")
    margins = {name: value for name, value in description.items() if name != "weights"}
    for margin, values in margins.items():
        for weights, (distance_weight, cosine_weight) in description["weights"].items():
            z = tensors["in.z"].clone().requires_grad_()
            loss = distance_weight * marginal_distance_matrix_loss(z, tensors["in.aux"], values["distmat_margin"])
            loss = loss + cosine_weight * marginal_cosine_loss(z, tensors["in.aux"], values["cos_margin"])
            loss.backward()
            case = f"{margin}.{weights}"
            torch.testing.assert_close(loss, tensors[f"{case}.vf_loss"], rtol=1e-6, atol=1e-6, msg=case)
            torch.testing.assert_close(z.grad, tensors[f"{case}.grad_z"], rtol=1e-6, atol=1e-6, msg=case)


def portable_weight(entry, seed):
    """A recorded weight from its rule: offset + scale (2 U - 1), U from a generator seeded by the name."""
    generator = np.random.RandomState((zlib.crc32(entry["name"].encode()) + seed) % 2**32)  # noqa: NPY002
    uniform = generator.random_sample(int(np.prod(entry["shape"]))).reshape(entry["shape"])
    return torch.from_numpy((entry["offset"] + entry["scale"] * (2 * uniform - 1)).astype(np.float32))


def recorded_lpips(description):
    """Our network with the recorded weights, through the same layout of files that users have."""
    model = LPIPS()
    entries = {entry["name"]: entry for entry in description["weights"] if not entry.get("kept")}
    convolutions = [layer for layer in model.stages.modules() if isinstance(layer, torch.nn.Conv2d)]
    names = sorted(
        {name.rsplit(".", 1)[0] for name in entries if name.startswith("net.")},
        key=lambda name: int(name.split(".")[2]),
    )
    for layer, name in zip(convolutions, names, strict=True):
        layer.load_state_dict(
            {
                kind: portable_weight(entries[f"{name}.{kind}"], description["weight_seed"])
                for kind in ("weight", "bias")
            }
        )
    for index, layer in enumerate(model.linear):
        (name,) = (name for name in entries if name.startswith(f"lin{index}."))
        layer.load_state_dict({"weight": portable_weight(entries[name], description["weight_seed"])})
    return model


def test_lpips(read_case):
    tensors, description = read_case("vf_loss/lpips")
    model = recorded_lpips(description)
    a = tensors["in.a"].clone().requires_grad_()
    distance = model(a, tensors["in.b"])
    torch.testing.assert_close(distance, tensors["out.lpips"], rtol=1e-5, atol=1e-5)
    distance.sum().backward()
    scale = float(tensors["grad.a"].abs().max())
    torch.testing.assert_close(a.grad, tensors["grad.a"], rtol=0, atol=1e-4 * scale)
