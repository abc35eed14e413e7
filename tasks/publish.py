"""Stage 9: what passed every gate and beats the version now at the target goes there, in one piece or not at all."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contracts import workload as workloads
from contracts.errors import SlipwayError
from contracts.files import write_json
from tasks.downloading.addresses import shown
from tasks.publishing.registry import Overtaken, Registry, Version, decide, open_registry
from tasks.publishing.release import Release, build
from tasks.stage import folder, stage_main

ATTEMPTS = 5


def run(workload: str) -> None:
    """Publish, or say why not, and write receipt.json: target, version, published, reason, files with sha256 and bytes.

    A model that does not beat the version there is no error (a scheduled retraining may end so): `published` is false then.

    Raises:
        SlipwayError: when a gate failed, or the target cannot be reached or written.
    """
    settings = workloads.settings_of(workload).publish
    registry = open_registry(settings, workload=workload)
    with release_of(workload, registry) as release:
        receipt = {"target": shown(settings.target), "name": registry.name, **publish(release, registry)}
        write_json(folder("publish", workload) / "receipt.json", {**receipt, "files": release.files()})
    verb = f"PUBLISHED as {receipt['version']}: {receipt['location']}" if receipt["published"] else "NOT PUBLISHED"
    print(f"{workload}: {verb}, for {receipt['reason']}")


def rehearse(workload: str) -> None:
    """Say what `run` would do, and look whether it could; nothing is written, here or there."""
    settings = workloads.settings_of(workload).publish
    registry = open_registry(settings, workload=workload)
    with release_of(workload, registry) as release:
        for file in release.files():
            print(f"  {file['bytes']:>12,}  {file['path']}")
        print(registry.check())
        latest = registry.latest()
        wanted, reason = decide(release, latest, workloads.load(workload).metric)
    print(f"{workload}: would {'be' if wanted else 'NOT be'} published to {shown(settings.target)}, for {reason}")


def publish(release: Release, registry: Registry) -> dict[str, Any]:
    """Publish a release that is to be published; looks again, and decides again, when somebody else was faster."""
    metric = workloads.load(release.workload).metric
    with registry.locked():
        for _ in range(ATTEMPTS):
            latest = registry.latest()
            wanted, reason = decide(release, latest, metric)
            if not wanted:
                return told(release, latest, reason)
            try:
                version, location = registry.add(release, latest)
            except Overtaken:
                continue
            return {**told(release, latest, reason), "published": True, "version": version, "location": location}
    raise SlipwayError(f"{ATTEMPTS} times somebody else published to the same target meanwhile: try again later")


def told(release: Release, latest: Version | None, reason: str) -> dict[str, Any]:
    """The receipt of a release that was not published; `version` is the one that stays there."""
    return {
        "published": False,
        "version": latest.name if latest else None,
        "location": None,
        "reason": reason,
        **release.record,
        "previous": asdict(latest) if latest else None,
    }


@contextmanager
def release_of(workload: str, registry: Registry) -> Iterator[Release]:
    """The built release, in a folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="slipway-") as scratch:
        yield build(workload, Path(scratch), name=registry.name)


if __name__ == "__main__":
    rehearsal = "--dry-run" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--dry-run"]
    stage_main(rehearse if rehearsal else run)
