"""What is learnt of a caption, and what is not: padding, frozen weights, the number of micro-batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from contracts.errors import SlipwayError
from contracts.workload import load
from engine.stream import Stream
from engine.validation import Validator
from engine.weights import rebuilt, save_weights
from workloads.captioning.base import language
from workloads.captioning.dataset import CaptioningDataset
from workloads.captioning.llava import unfit
from workloads.captioning.model import adapted, pooled
from workloads.captioning.objective import build, logits_at, make_optimizer
from workloads.captioning.phrases import COLOURS, DIGITS, OPPOSITE, Thing, phrasings
from workloads.captioning.settings import CaptioningTrain, Lora
from workloads.captioning.words import IGNORED, Words


def batch_of(tiny: Any, rows: range, **train: Any) -> dict[str, torch.Tensor]:
    dataset = CaptioningDataset(tiny.records.split("train"), tiny.with_train(**train), tiny.facts, training=True)
    return dataset.collate([dataset.item(index, None, draw=0, progress=0) for index in rows])


def objective_of(tiny: Any, **train: Any) -> Any:
    torch.manual_seed(1)
    return build(tiny.with_train(**train), tiny.facts, pretrained=True)


def gradients(objective: Any, batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The gradient of the mean loss over all labels of the batches."""
    objective.zero_grad()
    total = 0.0
    for batch in batches:
        output = objective(batch)
        (output["loss"] * output["weight"]).backward()
        total += float(output["weight"])
    return {name: value.grad / total for name, value in objective.named_parameters() if value.grad is not None}


def test_padding_is_not_trained_on(tiny: Any) -> None:
    batch = batch_of(tiny, range(4))
    dataset = CaptioningDataset(tiny.records.split("train"), tiny.settings, tiny.facts, training=True)
    lengths = [len(dataset.item(row, None, draw=0, progress=0)["ids"]) for row in range(4)]
    assert len(set(lengths)) > 1, "some of it is padding"
    for labels, length in zip(batch["labels"], lengths, strict=True):
        assert int((labels == tiny.facts["tokenizer"]["end"]).sum()) == 1, "padding is the same token, and no label"
        assert (labels[:length] != IGNORED).all() and (labels[length:] == IGNORED).all()
    wider = {
        name: torch.nn.functional.pad(batch[name], (0, 7), value=value) for name, value in (("ids", 0), ("labels", IGNORED))
    }
    objective = objective_of(tiny).eval()
    plain, padded = objective(batch), objective({**batch, **wider})
    assert float(plain["weight"]) == float(padded["weight"]) == int((batch["labels"] != IGNORED).sum())
    assert torch.allclose(plain["loss"], padded["loss"], atol=1e-6)


def test_the_output_layer_sees_the_positions_before_the_labels_and_no_others(tiny: Any) -> None:
    batch, objective, seen = batch_of(tiny, range(6)), objective_of(tiny).eval(), []
    language, hidden = objective.captioner.language_model, []
    language.get_output_embeddings().register_forward_hook(lambda layer, inputs, logits: seen.append((inputs[0], logits)))
    language.base_model.register_forward_hook(lambda model, inputs, output: hidden.append(output.last_hidden_state))
    objective(batch)
    [(shown, logits)], [whole] = seen, hidden
    there = batch["labels"] != IGNORED
    num, prefix = int(there.sum()), whole.shape[1] - batch["labels"].shape[1] + 1
    assert num < there.numel(), "some of it is padding"
    assert logits.shape == (num, tiny.facts["decoder"]["config"]["vocab_size"])
    places = [(row, prefix - 1 + column) for row, column in there.nonzero().tolist()]
    assert torch.equal(shown, torch.stack([whole[place] for place in places]))


def test_the_words_begin_less_than_twice_as_badly_as_by_guessing_among_all_that_the_language_model_knows(tiny: Any) -> None:
    objective = objective_of(tiny)
    least, most = objective.expected_loss["loss_words"]
    assert (least, most) == (0.0, 2 * math.log(tiny.facts["decoder"]["config"]["vocab_size"]))
    assert least < float(objective(batch_of(tiny, range(8)))["loss_words"]) < most


def test_the_words_begin_no_better_than_the_language_model_ended_where_it_was_made_on_the_spot(tiny: Any) -> None:
    """A loss below that is one of words that were shown."""
    known = {**tiny.facts, "reached": {"encoder": {"digits": 0.9}, "decoder": {"loss": 1.25}}}
    assert build(tiny.settings, known, pretrained=True).expected_loss["loss_words"][0] == 1.25
    assert build(tiny.settings, known, pretrained=False).expected_loss["loss_words"][0] == 0.0
    assert build(tiny.settings, tiny.facts, pretrained=True).expected_loss["loss_words"][0] == 0.0


def test_every_caption_ends_with_the_token_that_ends_it_and_it_is_a_label(tiny: Any) -> None:
    labels = batch_of(tiny, range(12))["labels"]
    last = [int(row[row != IGNORED][-1]) for row in labels]
    assert last == [tiny.facts["tokenizer"]["end"]] * 12


def test_a_caption_that_is_too_long_is_cut_and_teaches_no_end(tiny: Any) -> None:
    whole, labels = (batch_of(tiny, range(6), **train)["labels"] for train in ({}, {"longest": 3}))
    assert torch.equal(labels, whole[:, :3])
    assert not (labels == tiny.facts["tokenizer"]["end"]).any()


def test_a_caption_that_just_fits_keeps_its_end(tiny: Any) -> None:
    words, caption = Words(tiny.facts["tokenizer"]), "a red seven"
    whole = words.ids(caption, longest=64)
    assert words.ids(caption, longest=len(whole)) == whole and whole[-1] == words.end
    assert words.ids(caption, longest=len(whole) - 1) == whole[:-1]


def test_how_many_captions_are_cut_is_said_by_prepare_and_beside_the_scores(tiny: Any, capsys: Any) -> None:
    counted = tiny.facts["caption_tokens"]
    num, longest = sum(counted.values()), max(map(int, counted))
    assert num == sum(len(record.targets["captions"]) for record in tiny.records.split("train"))
    short, total = (
        tiny.with_train(longest=longest - 1),
        f"({counted[str(longest)]:,} of {num:,}) have more than {longest - 1} tokens",
    )
    workload, facts = load("captioning"), {name: tiny.facts[name] for name in ("num_records", "embedded")}
    for settings, said in ((tiny.settings, False), (short, True)):
        workload.prepare(tiny.records, settings, facts, tiny.folder / "prepare")
        assert (total in capsys.readouterr().err) == said
        notes = workload.score([], settings, tiny.facts).notes
        assert any(total in one and f"train.longest: {longest} takes them whole" in one for one in notes) == said


def test_no_caption_of_the_embedded_data_set_is_cut() -> None:
    """Not even where every byte was a token of its own."""
    things = [Thing(digit, colour, small=True) for digit in DIGITS for colour in COLOURS]
    captions = [caption for one in things for relation in (*OPPOSITE, None) for caption in phrasings([one, one], relation)]
    longest = 1 + max(len(caption.encode()) for caption in captions)
    assert longest <= CaptioningTrain().longest and longest < language.LONGEST


def test_two_micro_batches_have_the_gradient_of_one(tiny: Any) -> None:
    objective = objective_of(tiny).eval()
    whole = gradients(objective, [batch_of(tiny, range(8))])
    halves = gradients(objective, [batch_of(tiny, range(3)), batch_of(tiny, range(3, 8))])
    assert whole.keys() == halves.keys()
    assert max(float((whole[name] - halves[name]).abs().max()) for name in whole) < 1e-6


def test_only_projection_and_adapters_train(tiny: Any) -> None:
    objective = objective_of(tiny)
    trained = {name for name, value in objective.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in name or "projection." in name for name in trained)
    assert {
        name for name, value in gradients(objective, [batch_of(tiny, range(4))]).items() if value.abs().sum() > 0
    } <= trained


def test_unfrozen_layers_train_too_with_a_rate_of_their_own(tiny: Any) -> None:
    settings = tiny.with_train(unfreeze_encoder=1, unfreeze_decoder=1, unfrozen_rate=1e-5)
    objective = build(settings, tiny.facts, pretrained=True)
    trained = [name for name, value in objective.named_parameters() if value.requires_grad]
    assert any("encoder.encoder.layers.1." in name for name in trained)
    assert not any("encoder.encoder.layers.0." in name for name in trained)
    assert any(".layers.1.mlp." in name for name in trained)
    rates = [group["lr"] for group in make_optimizer(objective, settings.train).param_groups]
    assert sorted(rates) == [1e-5, settings.train.lora_rate, settings.train.learning_rate]


@pytest.mark.parametrize("train", [{}, {"unfreeze_encoder": 1, "unfreeze_decoder": 1, "unfrozen_rate": 1e-5}])
def test_what_is_saved_is_what_trains_and_makes_the_whole_again(tiny: Any, tmp_path: Path, train: dict[str, Any]) -> None:
    settings = tiny.with_train(**train)
    objective = build(settings, tiny.facts, pretrained=True)
    trained = {name for name, value in objective.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for value in objective.parameters():
            value.add_(0.1 * torch.rand_like(value) if value.requires_grad else 0)
    validator = Validator(load("captioning"), objective, settings, tiny.facts, tiny.records.split("val"))
    save_weights(validator.learnt(), tmp_path / "weights.safetensors")
    assert set(load_file(tmp_path / "weights.safetensors")) == trained
    again = rebuilt(load("captioning"), settings, tiny.facts, tmp_path / "weights.safetensors").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in objective.state_dict().items())


def test_the_contrast_loss_has_a_gradient_and_does_not_depend_on_micro_batches(tiny: Any) -> None:
    how = {"contrast": 0.5, "ghost_batch": 4}
    plain = gradients(objective_of(tiny).eval(), [batch_of(tiny, range(8))])
    objective = objective_of(tiny, **how).eval()
    whole = gradients(objective, [batch_of(tiny, range(8))])
    halves = gradients(objective, [batch_of(tiny, range(4)), batch_of(tiny, range(4, 8))])
    name = "captioner.projection.linear_1.weight"
    assert float((whole[name] - plain[name]).abs().max()) > 1e-4
    assert max(float((whole[key] - halves[key]).abs().max()) for key in whole) < 1e-6


def test_a_contrast_without_another_picture_is_refused_with_the_way_out() -> None:
    with pytest.raises(
        ValidationError, match=r"contrast 0.5 .* in a ghost_batch of 1 there is no other: .*\(ghost_batch: 16\)"
    ):
        CaptioningTrain.model_validate({"contrast": 0.5})
    assert CaptioningTrain.model_validate({"contrast": 0.5, "ghost_batch": 2}).contrast == 0.5


def test_pictures_give_what_their_kept_features_give(tiny: Any) -> None:
    pixels = tiny.settings.model_copy(update={"prepare": tiny.settings.prepare.model_copy(update={"features": False})})
    dataset = CaptioningDataset(tiny.records.split("train"), pixels, tiny.facts, training=True)
    seen = dataset.collate([dataset.item(index, None, draw=0, progress=0) for index in range(4)])
    objective = objective_of(tiny).eval()
    assert "pixels" in seen
    assert torch.allclose(objective(seen)["loss"], objective(batch_of(tiny, range(4)))["loss"], atol=2e-3)


def test_a_prefix_is_pooled_over_squares_of_the_picture() -> None:
    features = torch.arange(16.0).reshape(1, 16, 1)
    assert pooled(features, 4).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    with pytest.raises(SlipwayError, match="4 x 4 tokens can be pooled to 1, 4, 16"):
        pooled(features, 9)


def test_whenever_a_picture_is_drawn_it_comes_with_its_next_caption(tiny: Any) -> None:
    dataset = CaptioningDataset(tiny.records.split("train"), tiny.settings, tiny.facts, training=True)
    captions = {tuple(dataset.item(0, None, draw=draw, progress=0)["ids"]) for draw in range(3)}
    assert len(captions) == len(set(tiny.records.split("train")[0].targets["captions"])) == 3


def test_lengths_are_those_of_the_captions_that_are_drawn(tiny: Any) -> None:
    dataset = CaptioningDataset(tiny.records.split("train"), tiny.with_train(longest=9), tiny.facts, training=True)
    indices, draws = (grid.ravel() for grid in np.meshgrid(np.arange(10), np.arange(4)))
    each = zip(indices.tolist(), draws.tolist(), strict=True)
    items = [dataset.item(index, None, draw=draw, progress=0)["ids"] for index, draw in each]
    assert dataset.lengths(indices, draws).tolist() == [len(ids) for ids in items]
    assert len({len(ids) for ids in items}) > 1


def test_buckets_of_length_take_most_of_the_padding_away_and_leave_the_gradients(tiny: Any) -> None:
    """Counted in the batches that training gets: an epoch of the scenes' own captions, in micro-batches of 4."""
    dataset = CaptioningDataset(tiny.records.split("train"), tiny.settings, tiny.facts, training=True)
    streams = [Stream(len(dataset), 16, 2, 0, buckets=buckets, lengths=dataset.lengths) for buckets in (0, 3)]
    padded = [sum(int((one["labels"] == IGNORED).sum()) for one in micro_batches(dataset, stream, 4)) for stream in streams]
    counted = [sum(int((one["labels"] != IGNORED).sum()) for one in micro_batches(dataset, stream, 4)) for stream in streams]
    assert counted[0] == counted[1]
    assert padded[1] < padded[0] / 2, padded

    objective = objective_of(tiny).eval()
    whole, parts = (gradients(objective, list(micro_batches(dataset, streams[1], size))[: 16 // size]) for size in (16, 4))
    assert whole and all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)


def micro_batches(dataset: CaptioningDataset, stream: Stream, size: int) -> Iterator[dict[str, torch.Tensor]]:
    for step, start in itertools.product(range(stream.num_steps), range(0, stream.global_batch, size)):
        part = stream.batch(step)[start : start + size]
        yield dataset.collate([dataset.item(one.index, None, draw=one.draw, progress=0) for one in part])


@pytest.mark.parametrize("targets", [None, ("q_proj", "v_proj")])
def test_adapters_are_where_and_what_they_are_set_to_be(tiny: Any, targets: Any) -> None:
    objective = objective_of(tiny, lora=Lora(rank=4, alpha=12, dropout=0.25, targets=targets))
    [config] = objective.captioner.decoder.peft_config.values()
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 12, 0.25)
    kinds = {name.split(".lora_")[0].rsplit(".", 1)[1] for name, _ in objective.named_parameters() if "lora_" in name}
    assert kinds == set(targets or ("q_proj", "k_proj", "v_proj", "o_proj"))


def test_adapters_for_modules_that_do_not_exist_are_refused(tiny: Any) -> None:
    lora = CaptioningTrain().lora
    assert lora
    with pytest.raises(SlipwayError, match=r"train.lora.targets = \['nowhere'\]"):
        objective_of(tiny, lora=lora.model_copy(update={"targets": ("nowhere",)}))
    with pytest.raises(SlipwayError, match=r"'q_proj', 'c_proj'\]: the llama has no c_proj; its linear .*self_attn.q_proj"):
        objective_of(tiny, lora=lora.model_copy(update={"targets": ("q_proj", "c_proj")}))


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
FEW_HEADS = {**SMALL, "num_key_value_heads": 1, "intermediate_size": 32}
DECODERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "llama": (FEW_HEADS, {f"self_attn.{name}_proj" for name in "qkvo"}),
    "qwen2": (FEW_HEADS, {f"self_attn.{name}_proj" for name in "qkvo"}),
    "phi3": (FEW_HEADS, {"self_attn.qkv_proj", "self_attn.o_proj"}),
    "gpt2": ({"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}, {"attn.c_attn", "attn.c_proj"}),
    "gpt_neox": ({**SMALL, "intermediate_size": 32}, {"attention.query_key_value", "attention.dense"}),
    "opt": (
        {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16},
        {f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")},
    ),
    "gpt_neo": (
        {
            "vocab_size": 64,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
        },
        {f"attention.{name}_proj" for name in ("q", "k", "v", "out")},
    ),
    "bloom": (
        {"vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 2},
        {"self_attention.query_key_value", "self_attention.dense"},
    ),
}


@pytest.mark.parametrize("kind", DECODERS)
def test_adapters_are_on_the_whole_attention_and_nothing_else_whatever_the_architecture(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    options, wanted = DECODERS[kind]
    model = adapted(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)), Lora(rank=2, dropout=0))
    paths = [name.split(".lora_A")[0].split(".") for name, _ in model.named_parameters() if ".lora_A" in name]
    assert {".".join(path[-2:]) for path in paths} == wanted
    assert len(paths) == 2 * len(wanted), "in each of two layers"


def test_a_language_model_whose_attention_is_named_otherwise_is_refused_with_its_names() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(
        SlipwayError, match=r"a mamba names its attention's .* set it to some of .*mixer.in_proj.*or train.lora"
    ):
        adapted(model, Lora())


# Those whose logits are not what their output layer gives (scaled, capped), and why LLaVA cannot hold a language model.
OTHER_LOGITS: dict[str, dict[str, Any]] = {
    "gemma2": {**FEW_HEADS, "head_dim": 8, "final_logit_softcapping": 0.1},
    "granite": {**FEW_HEADS, "logits_scaling": 8.0},
    "cohere": {**FEW_HEADS, "eos_token_id": 1, "bos_token_id": 1},
}
UNFIT = {
    **dict.fromkeys(("gpt2", "opt", "gpt_neo", "bloom"), "has no attribute `embed_tokens`"),
    **dict.fromkeys(OTHER_LOGITS, "scales or caps its logits"),
    "phi": "weights that LLaVA has no place for",
}
EVERY = {kind: options for kind, (options, _) in DECODERS.items()} | OTHER_LOGITS | {"phi": FEW_HEADS}


@pytest.mark.parametrize("kind", EVERY)
def test_what_is_trained_are_the_logits_by_which_the_model_generates(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **EVERY[kind])).eval()
    shown, there = torch.randn(2, 5, 16), torch.tensor([[True, True, False], [True, False, False]])
    with torch.no_grad():
        whole = model(inputs_embeds=shown).logits
        layer = model.get_output_embeddings()
        given: list[torch.Tensor] = []
        handle = layer.register_forward_hook(lambda *call: given.append(call[-1].clone()))
        found = logits_at(model, there, inputs_embeds=shown)
        handle.remove()
        assert torch.allclose(found, whole[:, 2:][there], rtol=1e-4, atol=1e-6)
        assert torch.allclose(found, given[0], rtol=1e-4, atol=1e-6) == (kind not in OTHER_LOGITS)
        assert torch.equal(model(inputs_embeds=shown).logits, whole), "the model is as it was"


@pytest.mark.parametrize("kind", EVERY)
def test_whether_llava_can_hold_a_language_model_is_tried(kind: str) -> None:
    from transformers import AutoConfig

    fault = unfit(AutoConfig.for_model(kind, **EVERY[kind]))
    assert (kind in UNFIT) == (fault is not None)
    assert not fault or (f"of type {kind} (" in fault and UNFIT[kind] in fault)
