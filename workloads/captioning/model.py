"""The captioner: a frozen vision encoder, a projection to a prefix, and a small language model that goes on from there."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from contracts.errors import SlipwayError
from workloads.captioning.settings import CaptioningTrain, Lora

# What is adapted where `lora.targets` is None: the projections of the attention, as architectures name them; of these the first
# whose names are all there.
TARGETS = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),  # Llama, Qwen, Gemma, Mistral
    ("q_proj", "k_proj", "v_proj", "out_proj"),  # OPT, GPT-Neo, GPT-J
    ("q_proj", "k_proj", "v_proj", "dense"),  # Phi
    ("qkv_proj", "o_proj"),  # Phi-3
    ("qkv_proj", "out_proj"),  # CodeGen
    ("Wqkv", "out_proj"),  # MPT
    ("query_key_value", "dense"),  # GPT-NeoX, Falcon, BLOOM
    ("attn.c_attn", "attn.c_proj"),  # GPT-2, whose other layers have a c_proj too
)


class Projection(nn.Module):
    """The encoder's tokens as prefix tokens of the language model: two layers, or one (the second is then left out).

    Named as in transformers' LLaVA, which the published folder is opened with.
    """

    def __init__(self, width: int, decoder_width: int, *, layers: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, decoder_width)
        self.linear_2 = nn.Linear(decoder_width, decoder_width) if layers == 2 else None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, width] to [batch, tokens, decoder width]."""
        projected = self.linear_1(tokens)
        return projected if self.linear_2 is None else self.linear_2(nn.functional.gelu(projected))


class Captioner(nn.Module):
    """`encoder` is a vision model and `decoder` a causal language model of transformers, with LoRA's adapters where set."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, settings: CaptioningTrain) -> None:
        super().__init__()
        freeze(encoder, layers=settings.unfreeze_encoder, setting="train.unfreeze_encoder")
        freeze(decoder, layers=settings.unfreeze_decoder, setting="train.unfreeze_decoder")
        self.encoder = encoder
        self.projection = Projection(
            encoder.config.hidden_size,  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
            decoder.config.get_text_config().hidden_size,  # pyright: ignore
            layers=2 if settings.projection == "mlp" else 1,
        )
        self.decoder = adapted(decoder, settings.lora)
        self.prefix_tokens = settings.prefix_tokens

    @property
    def language_model(self) -> nn.Module:
        """The causal language model, adapters included."""
        return self.decoder.get_base_model() if hasattr(self.decoder, "get_base_model") else self.decoder  # pyright: ignore

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures float [batch, 3, height, width] as the encoder's last layer sees them, [batch, tokens, width].

        It is the layer that LLaVA takes: before the last norm, without the token for the whole picture.
        """
        seen = self.encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        return seen[:, num_class_tokens(self.encoder) :]

    def prefix(self, features: torch.Tensor) -> torch.Tensor:
        """Features to prefix embeddings [batch, prefix tokens, decoder width]."""
        return self.projection(pooled(features, self.prefix_tokens))


def num_class_tokens(encoder: nn.Module) -> int:
    """Tokens for the whole picture that stand before those of its parts: one for CLIP and ViT, none for SigLIP."""
    return 0 if encoder.config.model_type.startswith("siglip") else 1  # pyright: ignore


def pooled(features: torch.Tensor, num: int | None) -> torch.Tensor:
    """The tokens averaged over equal squares of the picture, so that `num` are left.

    Raises:
        SlipwayError: when squares do not divide into squares so.
    """
    if num is None or num == features.shape[1]:
        return features
    side, wanted = round(features.shape[1] ** 0.5), round(num**0.5)
    if wanted**2 != num or side % wanted:
        fitting = [step**2 for step in range(1, side + 1) if side % step == 0]
        raise SlipwayError(
            f"train.prefix_tokens = {num}: the encoder's {side} x {side} tokens can be pooled to {', '.join(map(str, fitting))}"
        )
    grid = features.transpose(1, 2).unflatten(2, (side, side))
    return nn.functional.avg_pool2d(grid, side // wanted).flatten(2).transpose(1, 2)


def freeze(model: nn.Module, *, layers: int, setting: str) -> None:
    """Let nothing of a transformer train but its last `layers` layers, as `setting` says.

    Raises:
        SlipwayError: when it has fewer.
    """
    model.requires_grad_(False)
    if layers:
        stack = max((one for one in model.modules() if isinstance(one, nn.ModuleList)), key=len)
        if layers > len(stack):
            raise SlipwayError(f"{setting} = {layers}: the {model.config.model_type} has {len(stack)} layers")  # pyright: ignore
        for layer in list(stack)[-layers:]:
            layer.requires_grad_(True)


def adapted(decoder: nn.Module, lora: Lora | None) -> nn.Module:
    """The language model with LoRA's adapters on its attention.

    Raises:
        SlipwayError: when it has no module of one of the names that are set, or of none of TARGETS.
    """
    if lora is None:
        return decoder
    from peft import LoraConfig, get_peft_model

    trained = {name for name, value in decoder.named_parameters() if value.requires_grad}
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=list(_targets(decoder, lora)),
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():  # peft asks the model by a name that transformers has given up
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # and is then set right: GPT-2
            model = get_peft_model(decoder, config)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise SlipwayError(f"train.lora.targets = {config.target_modules}: {error}") from None
    for name, value in model.get_base_model().named_parameters():
        if name.replace(".base_layer", "") in trained:
            value.requires_grad_(True)
    return model


def _targets(decoder: nn.Module, lora: Lora) -> tuple[str, ...]:
    """The names of what is adapted: each is that of a module, or what its path ends with."""
    paths = [f".{path}" for path, _ in decoder.named_modules()]

    def missing(names: tuple[str, ...]) -> list[str]:
        return [name for name in names if not any(path.endswith(f".{name}") for path in paths)]

    kind, linear = decoder.config.model_type, _linear(decoder)  # pyright: ignore
    if lora.targets is None:
        if fitting := next((names for names in TARGETS if not missing(names)), None):
            return fitting
        raise SlipwayError(
            f"train.lora.targets is null, and how a {kind} names its attention's projections is not known: set it to some of"
            f" {linear}, or train.lora to null"
        )
    if absent := missing(lora.targets):
        raise SlipwayError(
            f"train.lora.targets = {list(lora.targets)}: the {kind} has no {', '.join(absent)}; its linear layers are {linear}"
        )
    return lora.targets


def _linear(decoder: nn.Module) -> str:
    """What the linear layers of a transformer's layers are called, with what they lie in."""
    kinds = ("Linear", "Conv1D", "FalconLinear")
    paths = (path.split(".") for path, module in decoder.named_modules() if type(module).__name__ in kinds)
    return ", ".join(sorted({".".join(parts[-2:]) for parts in paths if len(parts) > 2}))
