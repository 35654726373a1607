"""The arguments of a quickstart of a few steps."""

TINY = {
    "foundation": [
        *("--foundation.training.steps", "4", "--foundation.training.global-batch-size", "16"),
        *("--foundation.model.num-layers", "2"),
    ],
    "tokenizer": [
        *("--tokenizer.training.steps", "4", "--tokenizer.training.global-batch-size", "8"),
        *("--tokenizer.model.block-out-channels", "8", "8", "16", "16", "--tokenizer.model.norm-num-groups", "4"),
    ],
    "transformer": [
        *("--transformer.training.steps", "6", "--transformer.training.global-batch-size", "16"),
        *("--transformer.model.hidden-size", "48", "--transformer.model.num-layers", "2"),
        *("--transformer.model.num-heads", "3", "--transformer.training.log-every", "2"),
    ],
    "samples": ["--samples.samples-per-class", "2", "--samples.sampling.num-inference-steps", "3"],
}
TINY_QUICKSTART = ["quickstart", *(option for options in TINY.values() for option in options)]
