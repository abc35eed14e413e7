"""The preflight as a whole: its parts outside the ranks, when it is made, and what it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from typer.testing import CliRunner

from contracts.errors import SlipwayError
from contracts.plan import Device, Hardware
from contracts.preflight import Estimate, Finding, Report
from contracts.settings import PlanSettings, PublishSettings, Settings
from tasks import preflight
from tasks.publishing import hub as hub_registry
from tasks.publishing import registry
from tests.engine.tiny_workload import Shipped, Tiny, tiny_spec
from tests.tasks.hub_server import HubServer, Repository

GIB = 1 << 30
ESTIMATE = Estimate(1000, 0.5, 10, 2.0, memory=2 * GIB, checkpoint=3 * GIB, weights=GIB)
HARDWARE = Hardware((), "a processor", 2, 8 * GIB, 4 * GIB, 100 * GIB, "Linux x86_64")
FAULT = Finding("gradients", "failed", "none for last.bias", "it is unused", "use it")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the project, with the tiny workload as one of the house."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "load", lambda name: Tiny())
    return tmp_path


class Otherwise(Shipped):
    """Computes something else when it is exported."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return super().forward(rows * 3 if torch.onnx.is_in_onnx_export() else rows)


@pytest.mark.slow
@pytest.mark.parametrize(("shipped", "state"), [(Shipped, "passed"), (Otherwise, "failed")])
def test_an_export_that_differs_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped: type[Shipped], state: str
) -> None:
    workload = Tiny()
    workload.shipped = shipped
    monkeypatch.setattr(preflight, "load", lambda name: workload)
    found = preflight.export(tiny_spec(tmp_path))
    assert (found.name, found.state) == ("export", state)
    assert ("differs from torch" if state == "failed" else "over 4 records") in found.reason


def test_a_graph_that_cannot_be_exported_is_a_finding_in_the_exporters_words(tmp_path: Path, monkeypatch: Any) -> None:
    workload = Tiny()
    workload.shipped = type("Broken", (Shipped,), {"forward": lambda self, rows: rows.cpu().no_such_thing})
    monkeypatch.setattr(preflight, "load", lambda name: workload)
    found = preflight.export(tiny_spec(tmp_path))
    assert found.state == "failed"
    assert "no_such_thing" in found.reason


def test_the_probe_of_a_folder_leaves_nothing_behind(project: Path) -> None:
    found = preflight.publishing(PublishSettings(target="file://registry"), workload="tiny")
    assert found.state == "passed"
    assert "written and removed" in found.reason
    assert list(project.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_found(project: Path) -> None:
    (project / "registry").write_text("a file stands where the folder should be")
    found = preflight.publishing(PublishSettings(target="file://registry"), workload="tiny")
    assert (found.name, found.state) == ("publishing", "failed")
    assert "is no folder" in found.reason


def test_a_disk_that_looks_writable_and_is_not_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preflight.tempfile, "NamedTemporaryFile", full)
    found = preflight.publishing(PublishSettings(target="file://registry"), workload="tiny")
    assert found.state == "failed"
    assert "No space left on device" in found.reason


def test_the_probe_of_a_store_leaves_nothing_behind() -> None:
    before = fsspec.filesystem("memory").find("/")
    found = preflight.publishing(PublishSettings(target="memory://models"), workload="tiny")
    assert found.state == "passed"
    assert fsspec.filesystem("memory").find("/") == before


def test_the_probe_makes_no_folders_where_a_store_has_them(project: Path) -> None:
    (project / "there").mkdir()
    store = registry.StoreRegistry(fsspec.filesystem("file"), f"{project}/there/models/tiny", "sftp://there/models/tiny")
    assert "written and removed" in preflight.try_writing(store)
    assert list((project / "there").iterdir()) == []


def test_a_store_that_refuses_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, path: str, value: bytes) -> None:
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", refuse)
    found = preflight.publishing(PublishSettings(target="memory://models"), workload="tiny")
    assert found.state == "failed"
    assert "403 Forbidden" in found.reason


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that this process talks to, where `tester` is logged in."""
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_thisisasecrettoken")
        monkeypatch.setattr(hub_registry, "FIRST_PAUSE", 0.001)
        yield server


def published_to(target: str) -> Finding:
    found = preflight.publishing(PublishSettings(target=target), workload="tiny")
    assert found.name == "publishing" and "secrettoken" not in found.line()
    assert found.state == "passed" or (found.cause and found.remedy)
    return found


@pytest.mark.parametrize("target", ["hf://tester/tiny", "hf://tester", "hf://club/tiny"])
@pytest.mark.parametrize("there", [True, False])
def test_a_hub_that_can_be_written_has_no_fault_and_is_left_as_it_was(hub: HubServer, target: str, there: bool) -> None:
    hub.organisations = ["club"]
    if there:
        hub.repositories = {"tester/tiny": Repository([("0", {})]), "club/tiny": Repository([("0", {})])}
    before = {name: list(one.commits) for name, one in hub.repositories.items()}
    found = published_to(target)
    assert found.state == "passed", found
    assert ("is there and can be written" if there else "will be made") in found.reason
    assert {name: one.commits for name, one in hub.repositories.items()} == before
    assert all(request.startswith("GET") for request in hub.requests)


def test_a_hub_that_refuses_the_connection_is_found(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with HubServer() as closed:
        monkeypatch.setenv("HF_ENDPOINT", closed.url)
    found = published_to("hf://tester/tiny")
    assert found.state == "failed"
    assert "hf://tester/tiny" in found.reason and "refused" in found.reason
    assert "the hub could not be reached (ConnectError); attempt 5 of 5" in capsys.readouterr().err


def test_a_token_that_may_only_read_is_found(hub: HubServer) -> None:
    hub.role = "read"
    found = published_to("hf://tester/tiny")
    assert found.state == "failed"
    assert "the token of tester may only read" in found.reason


@pytest.mark.parametrize("role", ["write", "fineGrained"])
def test_somebody_elses_repository_that_can_only_be_read_is_found(hub: HubServer, role: str) -> None:
    hub.repositories, hub.role = {"others/tiny": Repository([("0", {})])}, role
    found = published_to("hf://others/tiny")
    assert found.state == "failed"
    assert "has no right to write there" in found.reason


def test_an_owner_in_whose_name_nothing_can_be_made_is_found(hub: HubServer) -> None:
    found = published_to("hf://others/tiny")
    assert found.state == "failed"
    assert "tester, who is no member of others, cannot make it" in found.reason


def test_a_hub_that_does_not_know_the_question_is_no_fault(hub: HubServer) -> None:
    hub.repositories, hub.faults = {"tester/tiny": Repository([("0", {})])}, {"auth-check": [404]}
    found = published_to("hf://tester/tiny")
    assert found.state == "passed"
    assert "is there; logged in" in found.reason


@pytest.mark.parametrize(("free", "state"), [(19 * GIB, "passed"), (17 * GIB, "failed")])
def test_a_disk_too_small_for_the_checkpoints_is_found(project: Path, free: int, state: str) -> None:
    found = preflight.disk(ESTIMATE, keep=2, free=free, place=project)  # 4 x 3 GiB and 6 x 1 GiB
    assert (found.name, found.state) == ("disk", state)
    assert "18.00 GiB" in found.reason


@pytest.mark.parametrize(("took", "state"), [(3 * GIB, "passed"), (5 * GIB, "failed")])
def test_memory_that_is_not_there_is_found_on_a_cpu(took: int, state: str) -> None:
    assert preflight.memory(replace(ESTIMATE, memory=took), HARDWARE, device="cpu").state == state


@pytest.mark.parametrize(("took", "state"), [(22 * GIB, "passed"), (23.5 * GIB, "failed")])
def test_a_gpu_that_is_nearly_full_is_found(took: float, state: str) -> None:
    hardware = replace(HARDWARE, devices=(Device(0, "a card", 24 * GIB, 24 * GIB, (8, 9)),))
    found = preflight.memory(replace(ESTIMATE, memory=int(took)), hardware, device="cuda")
    assert found.state == state
    assert "of the 24.0 GiB" in found.reason


def test_the_time_is_that_of_steps_and_validations() -> None:
    assert ESTIMATE.seconds == 520
    assert "about 8:40: 1,000 steps of 0.500 s and 10 validations of 2.0 s" in preflight.duration(ESTIMATE).reason


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Finding]]:
    """What the next preflight finds; each that is made takes one from the list."""
    findings: list[Finding] = []

    def found(*_: object) -> Iterator[Finding]:
        yield findings.pop()

    monkeypatch.setattr(preflight, "_found", found)
    yield findings


def test_a_fault_stops_the_training_with_cause_and_remedy_and_is_looked_for_again(
    project: Path, made: list[Finding]
) -> None:
    spec = tiny_spec(project)
    made[:] = [FAULT, FAULT]
    for _ in range(2):
        with pytest.raises(
            SlipwayError, match=r"gradients .*none for last.bias; it is unused -> use it\n.*slipway preflight"
        ):
            preflight.before_training(spec, Settings())
    assert not made
    assert Report.read(Path(spec.output) / "preflight.json") == Report(preflight.looked_at(spec, Settings()), (FAULT,))


def test_a_run_that_passed_is_not_checked_again_and_another_is(
    project: Path, made: list[Finding], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tiny_spec(project)
    made[:] = [replace(FAULT, state="passed")] * 2
    preflight.before_training(spec, Settings())
    assert "1 passed" in capsys.readouterr().out
    preflight.before_training(spec, Settings())
    assert len(made) == 1
    preflight.before_training(replace(spec, fingerprint="another"), Settings())
    assert not made


def test_a_run_that_passed_is_checked_again_where_its_plan_or_target_is_another(project: Path, made: list[Finding]) -> None:
    spec = tiny_spec(project)
    elsewhere = Settings(publish=PublishSettings(target="file://elsewhere"))
    larger = replace(spec, plan=replace(spec.plan, micro_batch=8, accumulation=1))
    told_otherwise = replace(larger, plan=replace(larger.plan, reasons={"backend": "in other words"}))
    for left, (run, settings) in enumerate(
        [(told_otherwise, elsewhere), (larger, elsewhere), (spec, elsewhere), (spec, Settings())][::-1]
    ):
        made[:] = [replace(FAULT, state="passed")]
        preflight.before_training(run, settings)
        assert bool(made) == (left == 3), "the same in other words is not checked again"


def test_a_run_that_was_only_measured_is_checked_where_all_are_to_be(project: Path, made: list[Finding]) -> None:
    spec, always = tiny_spec(project), Settings(plan=PlanSettings(preflight="always"))
    made[:] = [FAULT, replace(FAULT, name="export", state="passed"), replace(FAULT, state="passed")]
    preflight.before_training(spec, Settings())
    preflight.before_training(spec, always)
    assert len(made) == 1
    preflight.before_training(spec, always)
    assert len(made) == 1


def test_a_run_that_goes_on_is_not_checked(project: Path, made: list[Finding]) -> None:
    spec = tiny_spec(project)
    (Path(spec.output) / "checkpoints" / "step-000000001").mkdir(parents=True)
    made[:] = [FAULT]
    preflight.before_training(spec, Settings())
    assert made == [FAULT]


@pytest.mark.parametrize(("wish", "shortest"), [("auto", 60), ("always", 0), ("never", None)])
def test_which_trainings_are_checked_is_a_setting(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wish: Any, shortest: float | None
) -> None:
    asked: list[float] = []

    def make(spec: Any, settings: Settings, *, shortest: float) -> Report:
        asked.append(shortest)
        return Report(spec.fingerprint, ())

    monkeypatch.setattr(preflight, "preflight", make)
    preflight.before_training(tiny_spec(project), Settings(plan=PlanSettings(preflight=wish)))
    assert asked == ([] if shortest is None else [shortest])
    assert ("preflight: none, as plan.preflight says" in capsys.readouterr().out) == (shortest is None)


@pytest.mark.parametrize(("state", "status"), [("passed", 0), ("failed", 1)])
def test_the_command_prints_a_line_a_check_and_fails_when_one_does(
    project: Path, monkeypatch: pytest.MonkeyPatch, made: list[Finding], state: Any, status: int
) -> None:
    from cli.main import app

    monkeypatch.setattr(preflight, "spec_of", lambda name: (tiny_spec(project), Settings()))
    made[:] = [replace(FAULT, state=state)]
    done = CliRunner().invoke(app, ["preflight", "tiny"])
    assert done.exit_code == status
    assert done.output.startswith(f"{state:<15} gradients          none for last.bias")
    assert ("it is unused -> use it" in done.output) == bool(status)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = Report("one", (FAULT, Finding("time", "passed", "about a minute")), ESTIMATE)
    report.write(tmp_path / "report.json")
    assert Report.read(tmp_path / "report.json") == report
