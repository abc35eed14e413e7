"""What a captioner's page on the hub says: what it was made of, and how transformers, transformers.js and peft open it."""

from __future__ import annotations

from contracts.workload import Card, Facts
from workloads.captioning.bases import num_features, on_the_hub
from workloads.captioning.settings import CaptioningSettings

# Below the published one: what transformers opens, what peft opens, and what the latter adapts where no hub has that.
FOLDER, ADAPTER, BASE = "transformers", "adapter", "base"
HERE = """In this folder, which `huggingface_hub.snapshot_download("ORGANISATION/NAME")` fetches from the hub,"""
USE = f"""{HERE} `{FOLDER}` opens with transformers, without code of anybody else's:

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{FOLDER}")
processor = AutoProcessor.from_pretrained("{FOLDER}")

inputs = processor(images="picture.png", text="<image>", return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=32)
print(processor.decode(tokens[0], skip_special_tokens=True))
```

`{FOLDER}/onnx` holds the graphs that transformers.js looks for beside it."""
PARTS = f"""`{ADAPTER}` is the LoRA adapter of the language model, in PEFT's format, and `projection.safetensors` what joins the two models.
The adapter belongs on the language model as it was before training, never on a merged one:"""
OPENED = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM

adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE, dtype="float32"), "{ADAPTER}")"""
SAID = """prefix = model.get_image_features(inputs["pixel_values"]).pooler_output[0][None]
tokens = adapted.generate(inputs_embeds=prefix, max_new_tokens=32, do_sample=False)
print(processor.decode(tokens[0], skip_special_tokens=True))"""


def card(settings: CaptioningSettings, facts: Facts) -> Card:
    """The licence is not known: it follows from those of the base models and of the captions."""
    reason = not_llava(settings.train.prefix_tokens, facts)
    parts = (
        [f"There is no folder `{FOLDER}`, neither for transformers nor for transformers.js: {reason}."] if reason else [USE]
    )
    parts += [adapter(settings, facts, alone=bool(reason))] if settings.train.lora else []
    return Card(
        license="unknown",
        library="onnx" if reason else "transformers",
        task="image-to-text",
        base_models=[facts[part]["name"] for part in ("encoder", "decoder") if on_the_hub(facts[part])],
        use="\n\n".join(parts),
    )


def not_llava(prefix_tokens: int | None, facts: Facts) -> str | None:
    """Why transformers' LLaVA cannot be this captioner; None where it can."""
    if prefix_tokens not in (None, num_features(facts["encoder"]["config"])[0]):
        return f"the prefix is pooled to {prefix_tokens} tokens, and LLaVA pools nothing"
    return facts.get("not_llava")


def adapter(settings: CaptioningSettings, facts: Facts, *, alone: bool) -> str:
    """How peft opens the adapter, and says a caption with it where transformers can make the prefix, which is not where it is `alone`."""
    name, revision = facts["decoder"]["name"], facts["decoder"]["revision"]
    hub = on_the_hub(facts["decoder"]) and not settings.train.unfreeze_decoder
    opened = OPENED.replace("BASE", f'"{name}", revision="{revision}"' if hub else f'"{BASE}"')
    lines = opened if alone else f"{opened}\n\n{SAID}"
    return f"{PARTS}\n\n```python\n{lines}\n```"
