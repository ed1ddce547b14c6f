"""What a `transformer.Transformer` refuses: unknown choices, and those that do not go together."""

from udd_jax.errors import UserError
from udd_jax.networks import layers, stacks


def check(model, conditional: list[str]) -> None:
    """UserError, one line, for the first field of the network that does not fit.

    conditional: the names that `model.network` may have besides "joint", with mutual attention.
    """
    choices = {
        "attention": ("mutual", "self"),
        "absent": ("noise", "left_out"),
        "network": ("joint", *conditional) if model.attention == "mutual" else ("joint",),
        "time": ("shared", "per_modality"),
        "time_table": ("untied", "tied", "sinusoidal"),
        "remat": ("none", "full", "dots"),
        "activation": tuple(layers.ACTIVATIONS),
        "implementation": ("flat", "xla", "cudnn", "fused"),
        "stack": (*stacks.STACKS, *([] if isinstance(model.stack, str) else [model.stack])),
    }
    for field, allowed in choices.items():
        if getattr(model, field) not in allowed:
            raise UserError(f"model.{field} = {getattr(model, field)!r}, expected one of {allowed}")
    if model.block_attention and (model.network != "joint" or model.time != "per_modality"):
        raise UserError(
            f"model.block_attention with model.network = {model.network!r} and model.time = "
            f"{model.time!r}, expected 'joint' and 'per_modality'"
        )
    if model.absent == "left_out" and (
        model.network != "joint" or model.time != "per_modality" or model.block_attention
    ):
        raise UserError(
            f"model.absent = 'left_out' with model.network = {model.network!r}, model.time = "
            f"{model.time!r} and model.block_attention = {model.block_attention}, expected "
            "'joint', 'per_modality' and False"
        )
    if not 0 <= model.decoder_layers < model.layers:
        raise UserError(
            f"model.decoder_layers = {model.decoder_layers} of model.layers = {model.layers}, "
            "expected at least 0 and fewer than all"
        )
    if model.decoder_layers and model.stack in ("plain", "long_skips"):
        raise UserError(
            f"model.decoder_layers = {model.decoder_layers} with model.stack = {model.stack!r}, "
            "expected 0, or the stack 'encoder_decoder'"
        )
    if model.width % model.heads:
        raise UserError(
            f"model.width = {model.width} is not a multiple of model.heads = {model.heads}"
        )
    if model.rotary and model.width // model.heads % 2:
        raise UserError(
            f"model.rotary turns pairs of numbers, and a head has {model.width // model.heads}: "
            "expected an even model.width / model.heads, or model.rotary = False"
        )
