"""Models written to folders: what their libraries print about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SAVE = """
import sys
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from workloads.captioning.writing import write_model
sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
write_model(LlamaForCausalLM(LlamaConfig(**sizes)), Path(sys.argv[1]))
assert "deepspeed" not in sys.modules, "its import takes longer than writing a small model"
"""


def test_a_model_is_written_without_a_word(tmp_path: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    done = subprocess.run(
        [sys.executable, "-c", SAVE, str(tmp_path)], capture_output=True, text=True, check=False, env=variables
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "model.safetensors").is_file()
