"""The networks of the losses with recorded weights."""

import re

from alight.models.discriminator import PatchDiscriminator
from alight.models.perceptual import LPIPS
from helpers.portable_weights import portable_state


def recorded_state(case, prefix=""):
    """The recorded weights below a dotted prefix, without it; unchecked, since a case may give rules another seed."""
    rules = [
        {key: value for key, value in rule.items() if key != "sha256_16"}
        for rule in case["weights"]
        if rule["name"].startswith(prefix)
    ]
    return {name.removeprefix(prefix): value for name, value in portable_state(case | {"weights": rules}).items()}


def recorded_lpips(case, prefix=""):
    """LPIPS with recorded weights, through the names in the two files that users have."""
    state = recorded_state(case, prefix)
    vgg16 = {re.sub(r"^net\.slice\d\.", "features.", name): value for name, value in state.items()}
    return LPIPS.from_weights(vgg16, {name: value for name, value in state.items() if name.startswith("lin")})


def recorded_discriminator(case, prefix):
    """The PatchGAN with recorded weights, in training mode; its running statistics are those of a fresh one."""
    model = PatchDiscriminator()
    missing, unexpected = model.load_state_dict(recorded_state(case, prefix), strict=False)
    assert not unexpected
    assert all(re.search(r"\.(running_mean|running_var|num_batches_tracked)$", name) for name in missing)
    return model
