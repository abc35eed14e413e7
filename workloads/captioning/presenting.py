"""What a captioner's page on the hub says: what it was made of, and how transformers, transformers.js and peft open it."""

from __future__ import annotations

import re

from contracts.workload import Card, Facts
from workloads.captioning.bases import num_features
from workloads.captioning.settings import CaptioningSettings

# Below the published one: what transformers opens.
FOLDER = "transformers"
COMMIT = re.compile(r"[0-9a-f]{40}")
USE = f"""The folder `{FOLDER}` opens with transformers, without code of anybody else's:

```python
from huggingface_hub import snapshot_download
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = snapshot_download("ORGANISATION/NAME") + "/{FOLDER}"
model, processor = (kind.from_pretrained(folder) for kind in (AutoModelForImageTextToText, AutoProcessor))
tokens = model.generate(**processor(images=picture, text="<image>", return_tensors="pt"), max_new_tokens=32)
```

`{FOLDER}/onnx` holds the graphs that transformers.js looks for beside it."""
ADAPTER = """`adapter` is the LoRA adapter of the language model, in PEFT's format, and `projection.safetensors` what joins the two models."""


def card(settings: CaptioningSettings, facts: Facts) -> Card:
    """The licence is not known: it follows from those of the base models and of the captions."""
    pooled = settings.train.prefix_tokens not in (None, num_features(facts["encoder"]["config"])[0])
    parts = ([] if pooled else [USE]) + ([ADAPTER] if settings.train.lora else [])
    return Card(
        license="unknown",
        library="onnx" if pooled else "transformers",
        task="image-to-text",
        base_models=[
            facts[part]["name"]
            for part in ("encoder", "decoder")
            if COMMIT.fullmatch(facts[part]["revision"] or "")  # a folder has no commit
        ],
        use="\n\n".join(parts),
    )
