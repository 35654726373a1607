"""A script beside pytorch-fid and torch-fidelity: their activations of one batch, with the given weights.

`test_inception.py` runs it as: python inception_oracle.py WEIGHTS IMAGES RESULT. It reads weights (.pth) and
images (.pt, (B, 3, H, W) uint8) and writes a dictionary of tensors.
"""

import sys
import types

import torch


def main(weights: str, images: str, result: str) -> None:
    # torchvision's compiled operators, which are not used here, need the libraries of its own build of torch.
    for name in ("torchvision._meta_registrations", "torchvision._autograd_registrations"):
        sys.modules[name] = types.ModuleType(name)
    from pytorch_fid import inception
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    pixels = torch.load(images, weights_only=True)
    inception.load_state_dict_from_url = lambda *_, **__: torch.load(weights, weights_only=True)
    pytorch_fid = inception.InceptionV3([3], resize_input=True, normalize_input=True).eval()
    torch_fidelity = FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights
    ).eval()
    spatial = []
    torch_fidelity.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, output: spatial.append(output))
    with torch.no_grad():
        pool, logits = torch_fidelity(pixels)
        torch.save(
            {
                "pytorch": pytorch_fid(pixels / 255)[0].flatten(1),
                "pool": pool,
                "logits": logits,
                "branch1x1": spatial[0],
            },
            result,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
