"""The learning rate follows the global batch where the user says how, and never the hardware."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from contracts.settings import TrainSettings


@pytest.mark.parametrize(
    ("rule", "batch", "rate"),
    [
        ("none", 64, 0.01),
        ("linear", 64, 0.04),
        ("linear", 8, 0.005),
        ("sqrt", 64, 0.02),
        ("sqrt", 4, 0.005),
        ("linear", 16, 0.01),
    ],
)
def test_another_global_batch_changes_the_rate_by_its_rule(rule: str, batch: int, rate: float) -> None:
    settings = TrainSettings.model_validate(
        {"global_batch": batch, "learning_rate": 0.01, "learning_rate_rule": rule, "reference_batch": 16}
    )
    assert settings.for_global_batch().learning_rate == pytest.approx(rate)


def test_the_rule_is_applied_once() -> None:
    settings = TrainSettings(global_batch=64, learning_rate=0.01, learning_rate_rule="linear", reference_batch=16)
    assert settings.for_global_batch().for_global_batch().learning_rate == pytest.approx(0.04)


def test_a_rule_without_the_batch_it_starts_from_is_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rate_rule needs reference_batch"):
        TrainSettings(learning_rate_rule="sqrt")
