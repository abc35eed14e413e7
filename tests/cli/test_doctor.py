"""The doctor finds nothing wrong where nothing is, and names the fault, the rank and the way out where something is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli import doctor
from cli.doctor import Finding, guarded, probe, told, unreachable, writable
from contracts.plan import Device, Hardware
from engine import selftest
from engine.selftest import DONE, JOIN, PRECISION, REDUCE, STATISTICS, Outcome, explain
from tests.readme import ROOT, readme_command

GIB = 1 << 30
PASSED = {JOIN: "2 in the gloo group", REDUCE: "all_reduce adds up"}


def report(phase: str, *, error: str = "", time: float = 0.0) -> dict[str, Any]:
    return {"phase": phase, "passed": PASSED, "error": error, "time": time}


@pytest.mark.slow
def test_the_doctor_finds_this_environment_sound(tmp_path: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    variables |= {"PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = readme_command(".venv/bin/slipway doctor")
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ ok, .*in \d+ s$", done.stdout, re.MULTILINE)
    for said in ("2 in the gloo group", "ghost batches agree over 2 ranks", "bfloat16"):
        assert said in done.stdout


def test_ranks_that_do_not_start_in_time_are_ended_and_told() -> None:
    outcome = selftest.launch(1, seconds=0.2)
    assert outcome.fault == "hung for 0.2 s: torchrun started 0 of 1 ranks"
    assert "127.0.0.1" in outcome.remedy


def test_the_first_rank_to_fail_is_the_cause() -> None:
    reports = {0: report(REDUCE, error="connection reset", time=9.0), 1: report(REDUCE, error="out of memory", time=8.0)}
    outcome = explain(2, reports, status=1, group="gloo", seconds=45)
    assert outcome.fault == f"rank 1 failed while {REDUCE}: out of memory"


def test_a_hang_names_the_rank_that_is_furthest_behind() -> None:
    outcome = explain(2, {0: report(REDUCE), 1: report(JOIN)}, status=None, group="nccl", seconds=45)
    assert outcome.fault == f"hung for 45 s: rank 1 stopped while {JOIN}"
    assert "NCCL_DEBUG=INFO" in outcome.remedy


def test_a_rank_that_died_without_a_word_shows_torchruns_last_line() -> None:
    outcome = explain(2, {0: report(DONE)}, status=1, group="gloo", seconds=45, log="a\nSignal 11 (SIGSEGV)\n")
    assert outcome.fault == "torchrun started 1 of 2 ranks: Signal 11 (SIGSEGV)"


def test_a_crash_at_the_very_end_is_no_success() -> None:
    outcome = explain(1, {0: report(DONE)}, status=-11, group="gloo", seconds=45)
    assert [one.state for one in told("gloo, 1 CPU rank", "CPU", outcome, whole=False)] == ["fault"]


def test_every_phase_that_passed_or_failed_gets_a_line() -> None:
    failed = Outcome({**PASSED, PRECISION: "fine"}, "rank 0 failed", STATISTICS, "update torch")
    found = [(one.name, one.state) for one in told("gloo, 2 CPU ranks", "CPU", failed, whole=True)]
    assert found == [("gloo, 2 CPU ranks", "ok"), ("half precision, CPU", "ok"), ("statistics, CPU", "fault")]
    early = Outcome({}, "hung", JOIN, "open the loopback")
    found = [(one.state, one.text) for one in told("gloo, 2 CPU ranks", "CPU", early, whole=True)]
    assert found == [("fault", "hung"), *[("not run", f"the ranks failed while {JOIN}")] * 2]


def test_nothing_is_left_out_without_a_reason() -> None:
    cpu = Hardware((), "CPU", 2, 8 * GIB, 8 * GIB, GIB, "Linux x86_64")
    gpu = Hardware((Device(0, "NVIDIA L4", GIB, GIB, (8, 9)),), "CPU", 2, 8 * GIB, 8 * GIB, GIB, "Linux x86_64")

    def without_torch(ranks: int, *, device: str, group: str) -> Outcome:
        return Outcome(fault="rank 0 failed while importing torch", phase=selftest.IMPORT)

    found = [(one.name, one.state, one.text) for one in doctor.process_groups(cpu, without_torch)]
    assert found == [
        ("gloo, 1 CPU rank", "fault", "rank 0 failed while importing torch"),
        ("gloo, 2 CPU ranks", "not run", "torch cannot be imported"),
        ("half precision, CPU", "not run", "torch cannot be imported"),
        ("statistics, CPU", "not run", "torch cannot be imported"),
        ("nccl, GPU ranks", "not run", "there is no GPU that torch can use"),
    ]
    names = [one.name for one in doctor.process_groups(gpu, lambda ranks, **where: Outcome(PASSED))]
    assert names[-4:] == ["nccl, 1 GPU rank", "half precision, GPU", "statistics, GPU", "nccl, 2 GPU ranks"]


def test_a_missing_and_an_old_package_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text('[project]\ndependencies = ["numpy>=99", "no-such-package-slipway", "pydantic>=2"]\n')
    found = next(doctor.packages(path))
    assert found.state == "fault"
    assert "numpy is " in found.text
    assert "no-such-package-slipway is missing" in found.text


def test_the_installed_packages_are_what_pyproject_asks_for() -> None:
    assert next(doctor.packages()).state == "ok"


def test_a_library_that_crashes_is_a_fault_and_not_the_doctors_end() -> None:
    assert (
        next(doctor.imported("it", "import no_such_module")).text == "ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert next(doctor.imported("it", "import os; os.abort()")).state == "fault"
    assert probe([sys.executable, "-c", "import time; time.sleep(9)"], seconds=0.3) == (-1, "no answer within 0.3 s")


def test_onnx_runtime_runs_a_graph() -> None:
    found = next(doctor.imported("ONNX Runtime", doctor.IMPORTS["ONNX Runtime"]))
    assert found.state == "ok", found.text
    assert "CPU" in found.text


def test_a_check_that_breaks_is_a_fault() -> None:
    def broken() -> Iterator[Finding]:
        raise RuntimeError("boom")
        yield

    assert [one.text for one in guarded("x", broken)] == ["the check broke: RuntimeError: boom"]


def test_a_busy_gpu_and_odd_findings_are_warnings() -> None:
    busy = Device(0, "NVIDIA L4", 22 * GIB, 2 * GIB, (8, 9))
    hardware = Hardware((busy,), "CPU", 2, 8 * GIB, 8 * GIB, GIB, "Linux x86_64", notes=("odd",))
    assert [one.state for one in doctor.devices(hardware)] == ["warning", "ok", "warning"]


@pytest.mark.parametrize(("gigabytes", "state"), [(0.5, "fault"), (2.5, "warning"), (90, "ok")])
def test_little_room_is_told_before_it_runs_out(gigabytes: float, state: str) -> None:
    amount = int(gigabytes * GIB)
    hardware = Hardware((), "CPU", 2, amount, amount, amount, "Linux x86_64")
    assert {one.state for one in doctor.room(hardware)} == {state}


def test_a_folder_without_a_repository_is_a_warning(tmp_path: Path) -> None:
    found = next(doctor.dvc(tmp_path))
    assert found.state == "warning"
    assert "is not a DVC repository" in found.text


def test_the_default_remote_is_read_from_dvcs_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_NO_ANALYTICS", "")
    (tmp_path / "config").write_text(
        "[core]\n    analytics = false\n    remote = here\n['remote \"here\"']\n    url = ../store\n"
    )
    assert doctor.remote(tmp_path) == ("here", "../store", True)
    (tmp_path / "config").write_text("[core]\n    remote = gone\n")
    assert doctor.remote(tmp_path) == (None, "", False)


def test_a_folder_is_writable_when_its_nearest_parent_is(tmp_path: Path) -> None:
    assert writable(tmp_path / "a/b/c")
    assert not writable(Path("/proc/slipway"))


def test_a_server_that_is_not_there_is_told_and_one_that_is_answers() -> None:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/api/health"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert unreachable(address) == ""
        server.shutdown()
        thread.join()
    assert "refused" in unreachable(address).lower()
    assert unreachable("file:///etc/passwd") == "not an http address"


def test_prefect_is_asked_without_importing_it_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    found = next(doctor.prefect())
    assert found.state == "fault"
    assert "the server http://127.0.0.1:9/api does not answer" in found.text


def test_the_exit_status_is_that_of_the_worst_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    app.command()(doctor.doctor)
    fine, bad = (Finding("disk", "ok", "90 GiB free"), Finding("git", "fault", "not found", "install git"))
    monkeypatch.setattr(doctor, "examine", lambda: iter([fine]))
    assert CliRunner().invoke(app, []).exit_code == 0
    monkeypatch.setattr(doctor, "examine", lambda: iter([fine, bad]))
    shown = CliRunner().invoke(app, [])
    assert shown.exit_code == 1
    assert "fault    git                  not found -> install git" in shown.output
    value = json.loads(CliRunner().invoke(app, ["--json"]).output)
    assert value["counts"] == {"ok": 1, "warning": 0, "fault": 1, "not run": 0}
    assert value["findings"][1]["remedy"] == "install git"


def test_what_needs_nothing_heavy_passes_here() -> None:
    for check in (doctor.python, doctor.clock):
        assert [one.state for one in check()] == ["ok"]
    assert os.environ.get("OMP_NUM_THREADS") == "1"
