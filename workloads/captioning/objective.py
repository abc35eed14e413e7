"""What captioning learns: the words of a caption, given the picture's prefix and the words before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from contracts.workload import Facts
from workloads.captioning.bases import empty_models, loaded_models
from workloads.captioning.model import Captioner, Projection
from workloads.captioning.settings import CaptioningSettings, CaptioningTrain
from workloads.captioning.words import IGNORED

TEMPERATURE = 0.07


class CaptioningObjective(nn.Module):
    """Batch in, losses out: the cross-entropy of the caption's tokens, its end included, and nothing else."""

    def __init__(self, captioner: Captioner, settings: CaptioningTrain, *, foreseen: float = 0.0) -> None:
        super().__init__()
        self.captioner = captioner
        self.contrast, self.ghost_batch = settings.contrast, settings.ghost_batch
        self.encoder_trains = settings.unfreeze_encoder > 0
        # The language model knows words already: how many of a caption's it foresees cannot be said. Before it has learnt to look at
        # the prefix it may even be sure of the wrong ones (7.7 where all alike would have 6.4), yet not of nearly every one. A fresh
        # projection tells it nothing: it foresees them no better than it did before (`foreseen`), where that is known.
        words = captioner.language_model.get_input_embeddings().num_embeddings  # pyright: ignore[reportCallIssue]
        self.expected_loss = {"loss_words": (foreseen, 2 * math.log(words))}

    def train(self, mode: bool = True) -> CaptioningObjective:
        """A frozen encoder stays as it is in use."""
        super().train(mode)
        if not self.encoder_trains:
            self.captioner.encoder.eval()
        return self

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`batch`: ids and labels int64 [B, L] (labels -100 where padded), and features [B, tokens, width] or pixels
        float [B, 3, H, W].

        Gives `loss`, the mean over the labels, and `weight`, their number. Logits are computed where there is a label alone.
        """
        prefix = self.captioner.prefix(self._features(batch))
        ids, labels = batch["ids"], batch["labels"]
        there = labels != IGNORED
        model = self.captioner.language_model
        words = model.get_input_embeddings()(ids)  # pyright: ignore[reportCallIssue]
        shown = torch.cat([prefix.to(words.dtype), words[:, :-1]], dim=1)
        mask = torch.cat([there.new_ones(prefix.shape[:2]), there[:, :-1]], dim=1)
        logits = logits_at(model, there, inputs_embeds=shown, attention_mask=mask.long())
        words_loss = functional.cross_entropy(logits.float(), labels[there])
        output = {"loss": words_loss, "weight": there.sum().float(), "loss_words": words_loss.detach()}
        if self.contrast:
            contrast = self._contrast(prefix.float(), words.detach().float(), there)
            output |= {"loss": words_loss + self.contrast * contrast, "loss_contrast": contrast.detach()}
        return output

    def _features(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if "features" in batch:
            return batch["features"].float()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.encoder_trains):
            return self.captioner.features(batch["pixels"])

    def _contrast(self, prefix: torch.Tensor, words: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """How well each picture's mean prefix picks its own caption's mean word among those of its ghost batch, and the other
        way round (Radford et al. 2021, arXiv 2103.00020); a mean weighted by the labels, so that any division gives the same."""
        pictures = functional.normalize(prefix.mean(1), dim=-1)
        weights = there[..., None].float()
        captions = functional.normalize((words * weights).sum(1) / weights.sum(1), dim=-1)
        total = prefix.new_zeros(())
        for start in range(0, len(prefix), self.ghost_batch):
            part = slice(start, start + self.ghost_batch)
            alike = pictures[part] @ captions[part].T / TEMPERATURE
            own = torch.arange(len(alike), device=alike.device)
            both = functional.cross_entropy(alike, own) + functional.cross_entropy(alike.T, own)
            total = total + both / 2 * there[part].sum()
        return total / there.sum()


def logits_at(model: Any, there: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """The logits [labels, vocabulary] by which the language model generates, at `there` (bool [B, L]) of its last L positions.

    The model's own forward makes them, since some scale (Granite, Cohere) or cap (Gemma 2) what their output layer gives; that
    layer is shown those positions and no others.
    """
    chosen = model.get_output_embeddings().register_forward_pre_hook(
        lambda layer, shown: (shown[0][:, -there.shape[1] :][there],)
    )
    try:
        return model(**inputs, use_cache=False).logits
    finally:
        chosen.remove()


def build(settings: CaptioningSettings, facts: Facts, *, pretrained: bool) -> CaptioningObjective:
    """The objective, with the base models' weights or without any."""
    encoder, decoder = loaded_models(facts) if pretrained else empty_models(facts)
    captioner = Captioner(encoder, decoder, settings.train)
    if pretrained and "features" in facts:
        standardize(captioner.projection, facts["features"])
    foreseen = facts.get("reached", {}).get("decoder", {}).get("loss", 0.0)
    return CaptioningObjective(captioner, settings.train, foreseen=foreseen if pretrained else 0.0)


@torch.no_grad()
def standardize(projection: Projection, moments: Mapping[str, Sequence[float]]) -> None:
    """Let a fresh projection begin as if every channel of the features had mean 0 and deviation 1: its weights take that in."""
    mean, std = (torch.tensor(moments[name]) for name in ("mean", "std"))
    projection.linear_1.weight.div_(std)
    projection.linear_1.bias.sub_(projection.linear_1.weight @ mean)


def make_optimizer(objective: nn.Module, settings: CaptioningTrain) -> torch.optim.Optimizer:
    """AdamW with a learning rate for the projection, one for the adapters and one for unfrozen layers."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, value in objective.named_parameters():
        if value.requires_grad:
            kind = "projection" if "projection." in name else "lora" if "lora_" in name else "unfrozen"
            rates = {"projection": settings.learning_rate, "lora": settings.lora_rate, "unfrozen": settings.unfrozen_rate}
            groups.setdefault(rates[kind], []).append(value)
    described: list[dict[str, Any]] = [{"params": values, "lr": rate} for rate, values in groups.items()]
    return torch.optim.AdamW(described, weight_decay=settings.weight_decay, betas=(0.9, 0.999))
