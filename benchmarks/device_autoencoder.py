"""The tokenizer on a device: encoding, decoding, training steps, and latents of images on a disk."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model

from alight.config import AlignmentConfig, ExtractLatentsConfig, ImagesConfig, OptimizerConfig, ReconstructionConfig
from alight.models.discriminator import PatchDiscriminator
from alight.models.foundation import FoundationModel
from alight.models.perceptual import LPIPS
from alight.models.vavae import VAVAE
from alight.options import FixedPrecision
from alight.runtime.device import autocast
from alight.runtime.seeding import seeded_initialisation
from alight.stages.extract_latents import moments, run
from alight.training.optimizer import make_optimizer, optimizer_step
from alight.training.tokenizer_networks import compile_networks
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward, discriminator_backward
from benchmarks.device_meter import DeviceMeter, precisions, reason
from benchmarks.device_table import Row
from benchmarks.extraction import stored_images

OPTIMIZER = OptimizerConfig(lr=1e-4, betas=(0.5, 0.9), max_grad_norm=None)
RECONSTRUCTION = ReconstructionConfig(
    vgg16_weights="download", lpips_weights="download"
)  # random weights all the same
WAYS: tuple[tuple[str, FixedPrecision, torch.dtype, FixedPrecision], ...] = (  # name, precision, weights and autocast
    ("eager", "fp32", torch.float32, "fp32"),
    ("eager, autocast", "bf16", torch.float32, "bf16"),
    ("eager, bf16 weights", "bf16", torch.bfloat16, "fp32"),
    ("compiled, bf16 weights", "bf16", torch.bfloat16, "fp32"),
)


def autoencoder(meter: DeviceMeter) -> Iterator[Row]:
    """Encode and decode in every precision, with the difference that each makes to the reconstruction."""
    batch, images = meter.sizes.autoencoder_batch, images_of(meter, meter.sizes.autoencoder_batch)
    vae = tokenizer_of(meter).eval().requires_grad_(False)
    latents = vae.posterior(images).mean
    exact = vae.decode_raw_latents(latents)
    with torch.device("meta"):
        skeleton = VAVAE.build(sample_size=meter.sizes.image_size, **meter.sizes.architecture)
    encoding = count_flops(lambda: skeleton.posterior(images.to("meta")))
    decoding = count_flops(lambda: skeleton.decode_raw_latents(latents.to("meta")))
    size = meter.sizes.image_size
    for way, precision, weights, cast in WAYS:
        vae.to(weights)
        if way.startswith("compiled"):
            meter.compile(vae.blocks, fixed_size=True)
        encode = partial(without_gradients, partial(moments, vae), images.to(weights), cast)
        yield meter.timed(Row(f"encode {size} px", way, precision, batch, flops=encoding), encode)
        decode = partial(without_gradients, vae.decode_raw_latents, latents.to(weights), cast)
        row = Row(f"decode {size} px", way, precision, batch, flops=decoding, remark=difference(decode(), exact))
        yield meter.timed(row, decode)


def tokenizer(meter: DeviceMeter) -> Iterator[Row]:
    """A training step with LPIPS and alignment, with and without a discriminator."""
    batch = meter.sizes.tokenizer_batch
    for precision, adversarial, compiled in itertools.product(precisions(meter), (False, True), (False, True)):
        if compiled and (precision == "fp32" or not adversarial):
            continue  # compilation takes a minute: only the usual step is compiled
        losses = "with discriminator" if adversarial else "without discriminator"
        row = Row(f"train tokenizer {losses}", "compiled" if compiled else "eager", precision, batch)
        try:
            step = TokenizerTraining(meter, precision, adversarial)
            if compiled:
                compile_networks(step.networks, meter.sizes.backend)
            yield meter.timed(row, step)
        except RuntimeError as error:
            yield Row(row.work, row.contender, precision, batch, remark=reason(error))
        step = None  # free its memory
        meter.clear()


class TokenizerTraining:
    """A training step of the library's parts with networks of random weights, the foundation model included."""

    def __init__(self, meter: DeviceMeter, precision: FixedPrecision, adversarial: bool) -> None:
        self.device, self.precision = meter.device, precision
        vae, foundation = tokenizer_of(meter).train(), foundation_of(meter)
        channels, factor = vae.config.latent_channels, vae.downsampling_factor
        projection = nn.Conv2d(channels, foundation.feature_dim, 1, bias=False).to(meter.device)
        discriminator = PatchDiscriminator().to(meter.device) if adversarial else None
        lpips = LPIPS().to(meter.device)
        self.networks = TokenizerNetworks(vae, projection, foundation, discriminator, lpips)
        self.images = images_of(meter, meter.sizes.tokenizer_batch)
        side = meter.sizes.image_size // factor
        self.noise = torch.randn(len(self.images), channels, side, side, device=meter.device)
        autoencoder = [*vae.named_parameters(), *projection.named_parameters("projection")]
        self.optimizers = [make_optimizer(autoencoder, OPTIMIZER)]
        if discriminator is not None:
            self.optimizers.append(make_optimizer(discriminator.named_parameters(), OPTIMIZER))

    def __call__(self) -> None:
        """One step."""
        discriminator = self.networks.discriminator
        factor = 1.0 if discriminator is not None else None
        with autocast(self.device, self.precision):
            made = autoencoder_backward(
                self.networks, self.images, self.noise, RECONSTRUCTION, AlignmentConfig(), adversarial_factor=factor
            )
            if discriminator is not None:
                discriminator_backward(discriminator, made.images, made.reconstructions, "hinge")
        for optimizer in self.optimizers:
            optimizer_step(optimizer, OPTIMIZER.lr, None)


def extraction(meter: DeviceMeter) -> Iterator[Row]:
    """Files on a disk to stored latents, with mirror images, by the command for it."""
    sizes = meter.sizes
    with stored_images(sizes.files, sizes.architecture) as folder:
        for name in ("first", "second"):  # the second finds kernels chosen and files cached
            config = ExtractLatentsConfig(
                output=folder / name,
                tokenizer=folder / "tokenizer",
                images=ImagesConfig(source=str(folder / "images"), size=sizes.image_size, workers=sizes.workers),
                batch_size=sizes.autoencoder_batch,
                statistics="data",
                precision="bf16",
                device=str(meter.device),
            )
            seconds = meter.once(partial(run, config))
            remark = f"{sizes.files} files of {sizes.workers} workers"
            yield Row(f"extract latents, {name} time", "eager", "bf16", sizes.files, [seconds], remark=remark)


def tokenizer_of(meter: DeviceMeter) -> VAVAE:
    """A tokenizer of random weights."""
    with seeded_initialisation(0):
        vae = VAVAE.build(sample_size=meter.sizes.image_size, **meter.sizes.architecture)
    return vae.to(meter.device)


def foundation_of(meter: DeviceMeter) -> FoundationModel:
    """A DINOv2 of random weights."""
    with meter.device:
        backbone = Dinov2Model(Dinov2Config(**meter.sizes.foundation, patch_size=14, image_size=518))
    return FoundationModel(backbone, input_mode="published").to(meter.device)


def images_of(meter: DeviceMeter, count: int) -> Tensor:
    """Smooth random images (B, 3, H, W) in [-1, 1]."""
    side = meter.sizes.image_size
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return nn.functional.interpolate(coarse, (side, side), mode="bilinear").to(meter.device)


def count_flops(work: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products and convolutions of some work."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return float(counter.get_total_flops())


@torch.no_grad()
def without_gradients(work: Callable[[Tensor], Any], inputs: Tensor, precision: FixedPrecision) -> Any:
    """Work on some tensor, under autocast where the precision is bf16."""
    with autocast(inputs.device, precision):
        return work(inputs)


def difference(images: Tensor, exact: Tensor) -> str:
    """The difference of images in [-1, 1] from those in full precision, in the usual measure."""
    error = (images.float() - exact).square().mean()
    return f"PSNR {10 * float((4 / error).log10()):.1f} dB against fp32" if error > 0 else "as fp32, bit for bit"
