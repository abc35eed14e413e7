"""Stage prepare: what no training changes, computed once: base models, frozen features, how often each record is drawn. Most need nothing."""

from __future__ import annotations

from contracts.files import write_json
from contracts.records import Records, read_facts
from contracts.workload import load, settings_of
from tasks.stage import SAMPLING_WEIGHTS, folder, stage_main
from tasks.weighing import write_weights


def run(workload: str) -> None:
    """Let `workload` write what it needs to data/prepare/`workload`, and facts.json beside it when that is complete.

    DVC leaves the folder as it is before the stage, so that features of pictures seen before are not computed again.
    """
    settings, kind, output = settings_of(workload), load(workload), folder("prepare", workload)
    records = Records.open(folder("parse", workload), root=folder("download", workload) / "raw")
    output.mkdir(parents=True, exist_ok=True)
    facts = kind.prepare(records, settings, read_facts(folder("parse", workload)), output)
    write_weights(output, kind, records, settings, name=workload)
    write_json(output / "facts.json", {**facts, "prepared": output.as_posix()} if facts else {})
    anything = facts or (output / SAMPLING_WEIGHTS).exists()
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{workload}: {size / 1e6:,.1f} MB in {output}" if anything else f"{workload}: nothing to prepare")


if __name__ == "__main__":
    stage_main(run)
