"""Records to training batches: whole learning histories from the first episode on, with a target at every step that was meant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from contracts.records import Records
from contracts.workload import Facts
from workloads.algorithm_distillation.histories import Histories, gather
from workloads.algorithm_distillation.tokens import Vocabulary, labels_of, tokens_of


class HistoryDataset:
    """Histories by index. An item is the bytes of one; tokens are made of a whole batch at once."""

    def __init__(self, records: Records, facts: Facts) -> None:
        histories = Histories(records.root)
        self.vocabulary = Vocabulary.of(facts)
        self.arrays = [histories.array(part) for part in histories.index["parts"]]
        inputs = records.table["inputs"].combine_chunks().take(records.positions)
        named = inputs.field("part").dictionary_encode()
        numbers = {name: number for number, name in enumerate(histories.index["parts"])}
        self.parts = np.array([numbers[name] for name in named.dictionary.to_pylist()])[named.indices.to_numpy()]
        self.rows = inputs.field("row").to_numpy()

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int, rng: np.random.Generator | None, *, draw: int, progress: float) -> np.ndarray:
        """A history, uint8 [1, episodes, horizon + 1, 4]."""
        return gather(self.arrays, self.parts[index : index + 1], self.rows[index : index + 1])

    def collate(self, items: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """`tokens` int16 [B, L, 7] and `labels` int64 [B, L], -100 where nothing is to be imitated."""
        histories = np.concatenate(items)
        tokens, labels = tokens_of(histories, self.vocabulary), labels_of(histories)
        batch = len(histories)
        return {
            "tokens": torch.from_numpy(tokens.reshape(batch, self.vocabulary.length, -1)),
            "labels": torch.from_numpy(labels.reshape(batch, self.vocabulary.length)),
        }
