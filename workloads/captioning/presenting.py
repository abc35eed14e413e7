"""What a captioner's page on the hub says: what it was made of, and how transformers, transformers.js and peft open it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from contracts.workload import Card, Facts
from workloads.captioning.bases import num_features
from workloads.captioning.settings import CaptioningSettings

# Below the published one: what transformers opens, what peft opens, and what the latter adapts where no hub has that.
FOLDER, ADAPTER, BASE = "transformers", "adapter", "base"
COMMIT = re.compile(r"[0-9a-f]{40}")
PLACE = """folder = "."  # this one, or huggingface_hub.snapshot_download("ORGANISATION/NAME")"""
USE = f"""The folder `{FOLDER}` opens with transformers, without code of anybody else's:

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

{PLACE}
picture = Image.open("picture.png").convert("RGB")
model, processor = (kind.from_pretrained(f"{{folder}}/{FOLDER}") for kind in (AutoModelForImageTextToText, AutoProcessor))
inputs = processor(images=picture, text="<image>", return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=32)
print(processor.decode(tokens[0], skip_special_tokens=True))
```

`{FOLDER}/onnx` holds the graphs that transformers.js looks for beside it."""
PARTS = f"""`{ADAPTER}` is the LoRA adapter of the language model, in PEFT's format, and `projection.safetensors` what joins the two models.
The adapter belongs on the language model as it was before training, never on the merged one in `{FOLDER}`:"""
OPENED = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")
adapted = PeftModel.from_pretrained(base, f"{{folder}}/{ADAPTER}")"""
SAID = """prefix = model.get_image_features(inputs["pixel_values"]).pooler_output[0][None]
tokens = adapted.generate(inputs_embeds=prefix, max_new_tokens=32, do_sample=False)
print(processor.decode(tokens[0], skip_special_tokens=True))"""


def card(settings: CaptioningSettings, facts: Facts) -> Card:
    """The licence is not known: it follows from those of the base models and of the captions."""
    pooled = settings.train.prefix_tokens not in (None, num_features(facts["encoder"]["config"])[0])
    parts = ([] if pooled else [USE]) + ([adapter(settings, facts, pooled=pooled)] if settings.train.lora else [])
    return Card(
        license="unknown",
        library="onnx" if pooled else "transformers",
        task="image-to-text",
        base_models=[facts[part]["name"] for part in ("encoder", "decoder") if on_the_hub(facts[part])],
        use="\n\n".join(parts),
    )


def adapter(settings: CaptioningSettings, facts: Facts, *, pooled: bool) -> str:
    """How peft opens the adapter, and says a caption with it where transformers can make the prefix."""
    name, revision = facts["decoder"]["name"], facts["decoder"]["revision"]
    hub = on_the_hub(facts["decoder"]) and not settings.train.unfreeze_decoder
    opened = OPENED.replace("BASE", f'"{name}", revision="{revision}"' if hub else f'f"{{folder}}/{BASE}"')
    lines = f"{PLACE}\n{opened}" if pooled else f"{opened}\n{SAID}"
    return f"{PARTS}\n\n```python\n{lines}\n```"


def on_the_hub(described: Mapping[str, Any]) -> bool:
    """Whether a base model came from there, at a commit: a folder has none."""
    return bool(COMMIT.fullmatch(described["revision"] or ""))
