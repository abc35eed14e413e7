"""`slipway serve`: a real server on a model that needs no training, asked over real HTTP, with everything that goes wrong."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException, Request
from PIL import Image

from cli import serve
from contracts.errors import SlipwayError
from contracts.raw import RawInput, RawKind
from contracts.workload import load
from serving.runtime import open_run
from serving.service import MOST_AT_ONCE, Model, answer
from serving.uploads import Limits, received
from tests.conftest import Scenes
from tests.readme import readme_command
from tests.serving.browser import browser
from tests.serving.page import standing
from tests.serving.server import FORM, ROOT, Server, file_form, form, serving
from tests.serving.stand_in import picture, write_artifact

# Half a megabyte and a third of a megapixel: faults need no large files.
LIMITS = ("--max-megabytes", "0.5", "--max-megapixels", "0.3")


def encoded(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """A BGR picture as a file."""
    file = io.BytesIO()
    Image.fromarray(image[..., ::-1]).save(file, kind, **options)
    return file.getvalue()


GREEN = encoded(picture(120, 80, green=(8, 8, 64, 40)))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a published model."""
    folder = tmp_path_factory.mktemp("project")
    model = write_artifact(folder / "registry" / "colours" / "v1")
    (folder / "registry" / "colours" / "latest.json").write_text('{"version": "v1"}')
    (folder / "temporary").mkdir()
    (model / "README.md").write_text("---\nlicense: agpl-3.0\nmodel-index:\n- name: colours\n---\n# A model\n")
    rows = [{"name": "fp32", "metric": 0.75}]
    (model / "comparison.json").write_text(json.dumps({"metric": "mask_map50_95", "split": "test", "rows": rows}))
    return folder


def command(*arguments: str) -> list[str]:
    return [*readme_command(".venv/bin/slipway serve"), "--port", "0", "--threads", "1", *arguments]


@pytest.fixture(scope="module")
def server(project: Path) -> Iterator[Server]:
    with serving(command(*LIMITS), project, TMPDIR=str(project / "temporary")) as running:
        yield running


def bomb(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes whose header promises that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.slow
def test_it_says_what_it_serves_and_where(server: Server) -> None:
    assert server.said.startswith("segmentation model registry/colours/v1 (fp32) at http://127.0.0.1:")
    assert server.get("/health").json == {"status": "ok"}
    told = server.get("/model").json
    assert {key: told[key] for key in ("workload", "name", "version", "precision", "licence", "input_size")} == {
        "workload": "segmentation",
        "name": "colours",
        "version": "v1",
        "precision": "fp32",
        "licence": "agpl-3.0",
        "input_size": [64, 64],
    }
    assert told["metric"] == {"name": "mask_map50_95", "value": 0.75, "split": "test"}
    assert told["limits"] == {"bytes": 500_000, "pixels": 300_000}
    assert (told["threads"], told["providers"], told["examples"]) == (1, ["CPUExecutionProvider"], [])


@pytest.mark.slow
def test_the_values_are_those_of_slipway_predict_however_the_picture_is_sent(
    server: Server, project: Path, tmp_path: Path
) -> None:
    (tmp_path / "one.png").write_bytes(GREEN)
    program = [*readme_command(".venv/bin/slipway predict my-pictures")[:2], "one.png", "--threads", "1"]
    done = subprocess.run(
        [*program, "--model", str(project / "registry" / "colours" / "v1")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    [expected] = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    assert expected["objects"][0]["class"] == "green"
    in_form = server.post(file_form(GREEN, "one.png"), FORM)
    assert in_form.status == 200
    assert re.fullmatch(r"predict;dur=[\d.]+", in_form.headers["server-timing"])
    bare = [server.post(GREEN, kind, "/predict?name=one.png") for kind in ("image/png", "application/octet-stream")]
    assert [one.json for one in (in_form, *bare)] == [expected] * 3
    overlay = (tmp_path / "predictions" / "overlays" / "one.png").read_bytes()
    assert server.post(file_form(GREEN, "one.png"), FORM, Accept="image/png").body == overlay
    drawn = server.post(GREEN, Accept="image/jpeg")
    assert (drawn.headers["content-type"], drawn.body[:2]) == ("image/jpeg", b"\xff\xd8")


@pytest.mark.slow
def test_a_turned_photograph_comes_upright(server: Server) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = server.post(encoded(picture(120, 80), "JPEG", exif=exif), "image/jpeg").json
    assert (found["width"], found["height"]) == (80, 120)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG2000", "PPM"])
def test_every_format_that_predict_lists_is_taken(server: Server, kind: str) -> None:
    found = server.post(encoded(picture(120, 80, green=(8, 8, 64, 40)), kind))
    assert found.status == 200, found.body
    assert [one["class"] for one in found.json["objects"]] == ["green"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (GREEN + b"\0" * 600_000, "image/png", 413, r"larger than 0\.5 MB.*--max-megabytes"),
        (file_form(GREEN + b"\0" * 5_000_000, "a.png"), FORM, 413, r"larger than 0\.5 MB"),
        (bomb(50_000, 50_000), "image/png", 413, r"too large to be unpacked|50000 x 50000"),
        (bomb(10_000, 9_000), "image/png", 413, r"picture has 10000 x 9000 pixels, and at most 0\.3 million"),
        (b"x=1", "application/x-www-form-urlencoded", 415, "application/x-www-form-urlencoded is no picture: send one"),
        (b"{}", "application/json", 415, "application/json is no picture"),
        (b"", "image/png", 422, "picture is empty"),
        (b"hello, world", "image/png", 422, r"picture \(12 bytes\) is no picture that can be read; these can: .*JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/eps", 422, "is no picture that can be read"),
        (GREEN[: len(GREEN) // 2], "image/png", 422, "picture "),
        (GREEN[:20], "image/png", 422, "picture "),
        (bomb(100, 100), "image/png", 422, "picture "),
        (file_form(b"", "a.png"), FORM, 422, "a.png is empty"),
        (file_form(b"text", "a.png"), FORM, 422, r"a\.png \(4 bytes\) is no picture"),
        (form(('name="x"', b"1")), FORM, 422, "holds no whole file"),
        (file_form(GREEN, "a.png")[:-60], FORM, 422, "holds no whole file"),
        (b"no form at all", FORM, 422, "holds no whole file"),
        (f"--{FORM.rpartition('=')[2]}\r\nno headers".encode() + b"\r\n--x", FORM, 422, "form"),
        (file_form(GREEN, "a.png"), "multipart/form-data", 422, "names no boundary"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_cause(
    server: Server, body: bytes, kind: str, status: int, said: str
) -> None:
    found = server.post(body, kind)
    assert found.status == status, found.body
    assert re.search(said, found.json["detail"]), found.json
    assert server.post(GREEN).status == 200


@pytest.mark.slow
def test_a_name_is_given_back_as_text_without_its_folders(server: Server) -> None:
    for name, told in {
        "<img src=x onerror=alert(1)>.png": "<img src=x onerror=alert(1)>.png",
        "C:\\\\fakepath\\\\é b.png": "é b.png",
        "../../etc/passwd": "passwd",
        "": "picture",
    }.items():
        found = server.post(file_form(GREEN, name), FORM)
        assert found.headers["content-type"] == "application/json"
        assert found.json["image"] == told


@pytest.mark.slow
def test_other_addresses_and_methods_are_refused(server: Server) -> None:
    assert [server.get(path).status for path in ("/docs", "/redoc", "/predictions", "/examples/0", "/predict")] == [
        404,
        404,
        404,
        404,
        405,
    ]
    assert server.get("/openapi.json").json["paths"].keys() == {"/health", "/model", "/examples/{number}", "/predict"}
    assert server.get("/health", Host="evil.example").status == 400, "a page elsewhere could rebind its name to this address"
    for host in ("localhost", "127.0.0.1", "[::1]"):
        assert server.get("/health", Host=f"{host}:{server.port}").status == 200


@pytest.mark.slow
def test_the_page_is_one_file_that_loads_nothing_from_elsewhere(server: Server) -> None:
    page = server.get("/")
    assert page.headers["content-type"].startswith("text/html")
    text = page.body.decode()
    assert set(re.findall(r"\w+://[^\"'`\s]*", text)) == {"http://www.w3.org/2000/svg"}
    assert re.findall(r"<(?:link|script|img|iframe|style)\b[^>]*>", text) == [
        '<link rel="icon" href="data:,">',
        "<style>",
        "<script>",
    ]
    assert "innerHTML" not in text
    assert "insertAdjacentHTML" not in text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert set(re.findall(r'fetch\([`"](\w+)', text)) == {"model", "examples", "predict"}


@pytest.mark.slow
def test_many_at_once_are_answered_or_told_to_come_back(server: Server) -> None:
    with ThreadPoolExecutor(24) as clients:
        found = list(clients.map(lambda _: server.post(GREEN), range(96)))
    assert {one.status for one in found} <= {200, 503}
    answered = [one.json for one in found if one.status == 200]
    assert len(answered) >= MOST_AT_ONCE
    assert all(one == answered[0] for one in answered)
    refused = [one for one in found if one.status == 503]
    assert all(one.headers["retry-after"] == "1" and "waiting already" in one.json["detail"] for one in refused)
    assert server.post(GREEN).status == 200


@pytest.mark.slow
def test_nothing_is_written_to_disk(server: Server, project: Path) -> None:
    # More than the megabyte from which on Starlette's forms go to disk, so with a server that takes it.
    noise = encoded(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8))
    assert len(noise) > 1_400_000
    before = sorted(path.relative_to(project) for path in project.rglob("*"))
    with serving(command(), project, TMPDIR=str(project / "temporary")) as another:
        assert another.post(file_form(noise, "noise.png"), FORM).status == 200
        assert sorted(path.relative_to(project) for path in project.rglob("*")) == before


@pytest.mark.slow
def test_a_client_that_leaves_midway_harms_nobody(server: Server) -> None:
    for _ in range(MOST_AT_ONCE + 2):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\nsome")
    while (found := server.post(GREEN)).status == 503:  # until the server has heard that they left
        assert "waiting already" in found.json["detail"]
    assert found.status == 200


def test_an_upload_that_never_ends_is_given_up() -> None:
    async def receive() -> Any:
        await asyncio.sleep(3600)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"image/png")]}
    with pytest.raises(HTTPException, match="not there after 0.01 seconds") as raised:
        asyncio.run(received(Request(scope, receive), Limits(10, 10, 0.01), name="a"))
    assert raised.value.status_code == 408


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_and_well_though_an_upload_is_under_way(project: Path, how: signal.Signals) -> None:
    with serving(command(), project) as running, socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\nsome")
        assert running.post(GREEN).status == 200
        assert running.end(how) == (0, "", "")


@pytest.mark.slow
def test_a_taken_port_is_an_error_that_names_the_way_out(server: Server, project: Path) -> None:
    program = [word if word != "0" else str(server.port) for word in command()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, cwd=project, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot listen at 127.0.0.1 port {server.port}: Address already in use")
    assert "--port 0 takes a free port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_host_that_is_not_this_machine_s_is_an_error() -> None:
    with pytest.raises(SlipwayError, match=r"cannot listen at 192\.0\.2\.1 port 0"):
        serve.listen("192.0.2.1", 0)


@pytest.mark.slow
def test_the_server_has_not_imported_torch(project: Path) -> None:
    code = (
        "import os, sys; from cli import serve; from cli.main import app\n"
        "def leave(*_):\n"
        "    heavy = {'torch', 'torchvision', 'ultralytics', 'transformers', 'prefect', 'dvc', 'matplotlib'}\n"
        "    print(sorted(heavy & set(sys.modules)), 'onnxruntime' in sys.modules, flush=True); os._exit(0)\n"
        "serve.leave = leave\n"
        "app(['serve', '--port', '0', '--threads', '1'])"
    )
    with serving([sys.executable, "-c", code], project) as running:
        assert running.post(GREEN).json["objects"]
        status, said, errors = running.end()
    assert (status, said.strip()) == (0, "[] True"), errors


def test_a_model_is_found_by_workload_or_by_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    newest = Path("registry/colours/v1")
    assert serve.find_model(None) == serve.find_model("segmentation") == serve.find_model(str(newest)) == newest
    with pytest.raises(SlipwayError, match="no model for captioning found"):
        serve.find_model("captioning")
    with pytest.raises(
        SlipwayError, match=r"dreams is neither a workload \(algorithm_distillation, captioning, segmentation"
    ):
        serve.find_model("dreams")


def test_a_workload_that_takes_no_pictures_is_refused_by_what_it_takes(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "load", lambda name: SimpleNamespace(raw=RawKind("histories", frozenset({".npz"}))))
    with pytest.raises(SlipwayError, match=r"takes histories: the page is for pictures; `slipway predict` runs it"):
        serve.open_model(project / "registry" / "colours" / "v1", None, 1)


@pytest.mark.slow
def test_the_confidence_can_be_set(project: Path) -> None:
    with serving(command("--confidence", "0.95"), project) as running:
        assert running.post(GREEN).json["objects"] == []


@pytest.fixture
def opened(project: Path) -> Model:
    run = open_run(project / "registry" / "colours" / "v1", threads=1)
    workload = load("segmentation")
    return Model(workload, workload.Settings.model_validate(run.artifact.settings), run)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG2000"])
def test_a_damaged_picture_is_answered_or_refused_and_never_breaks_the_server(opened: Model, kind: str) -> None:
    rng, limits = np.random.default_rng(0), Limits(10**6, 10**6)
    whole = encoded(picture(60, 40, green=(8, 8, 32, 32)), kind)
    statuses = []
    for trial in range(60):
        data = bytearray(whole)
        if trial % 3 == 0:
            del data[int(rng.integers(1, len(data))) :]
        else:
            for place in rng.integers(0, len(data), 1 + trial % 7):
                data[place] = rng.integers(256)
        try:
            statuses.append(answer(opened, RawInput("a", bytes(data)), limits, "").status_code)
        except HTTPException as error:
            statuses.append(error.status_code)
    assert set(statuses) <= {200, 413, 422}
    assert 422 in statuses


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (7, 900)])
def test_the_strangest_sizes_are_answered(opened: Model, size: tuple[int, int]) -> None:
    found = answer(opened, RawInput("a", encoded(picture(*size))), Limits(10**6, 10**6), "")
    assert (json.loads(bytes(found.body))["width"], json.loads(bytes(found.body))["height"]) == size


@pytest.fixture
def project_with_data(project: Path, scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose model was made of the scenes that lie in it."""
    shutil.copytree(scenes.records, tmp_path / "data" / "parse" / "segmentation")
    shutil.copytree(scenes.raw, tmp_path / "data" / "download" / "segmentation" / "raw")
    (tmp_path / "data" / "parse" / "segmentation" / "facts.json").write_text(json.dumps(scenes.facts))
    shutil.copytree(project / "registry", tmp_path / "registry")
    path = tmp_path / "registry" / "colours" / "v1" / "artifact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "facts": scenes.facts}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_pictures_of_the_test_split_are_offered_where_the_model_s_own_data_lies(project_with_data: Path) -> None:
    with serving(command("segmentation"), project_with_data) as running:
        names = running.get("/model").json["examples"]
        assert 1 <= len(names) <= serve.NUM_EXAMPLES
        assert all("test/" in name for name in names)
        first = running.get("/examples/0")
        assert first.headers["content-type"] == "image/jpeg"
        assert first.body == (project_with_data / "data/download/segmentation/raw" / names[0]).read_bytes()
        assert running.get(f"/examples/{len(names)}").status == 404
        assert running.post(first.body).status == 200


@pytest.mark.slow
def test_other_machines_are_shown_no_pictures_and_neither_is_anybody_from_other_data(project_with_data: Path) -> None:
    with serving(command("--host", "0.0.0.0"), project_with_data) as running:
        assert running.get("/model", Host="somewhere").json["examples"] == []
    model = serve.open_model(project_with_data / "registry" / "colours" / "v1", None, 1)
    (project_with_data / "data/parse/segmentation/facts.json").write_text('{"num_records": 7}')
    assert serve.examples_of(model) == []


def test_the_page_s_own_script_shows_the_objects_of_a_picture_and_says_what_is_wrong_with_a_file(
    server: Server, project: Path, tmp_path: Path
) -> None:
    """Without a browser, which not every machine has; with one, see the test below."""
    (tmp_path / "<b>green.png").write_bytes(GREEN)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "red.tif").write_bytes(encoded(picture(90, 70, red=(8, 8, 64, 40)), "TIFF"))
    (tmp_path / "large.png").write_bytes(GREEN + bytes(500_000))
    (tmp_path / "empty.png").write_bytes(encoded(picture(60, 40)))
    names = ("<b>green.png", "broken.jpg", "red.tif", "large.png", "empty.png")
    with serving(command(*LIMITS), project) as alone:  # a server that no other test keeps busy
        green, broken, red, large, empty = standing(alone.address, *(tmp_path / name for name in names))
    [thing] = server.post(GREEN).json["objects"]
    assert green["error"] is None
    assert (green["title"], green["name"]) == ("colours v1 · Slipway", "<b>green.png · 120 × 80")
    assert green["objects"] == [[thing["class"], f"{thing['score']:.2f}"]]
    assert (green["boxes"], green["masks"], green["picture"]) == ([thing["box"]], 1, [120, 80])
    assert green["json"] == {**server.post(GREEN).json, "image": "<b>green.png"}
    assert re.fullmatch(r"[\d.]+ m?s for the model, [\d.]+ m?s in all", green["time"])
    assert "broken.jpg (10 bytes) is no picture" in broken["error"]
    assert (broken["picture"], broken["objects"], broken["json"]) == (None, [], None)
    # A format that browsers do not show: the server draws it.
    assert (len(red["objects"]), red["masks"], red["error"]) == (1, 0, None) and red["picture"] is not None
    assert large["error"] == "large.png has 0.5 MB; at most 0.5 MB are taken."
    assert (empty["nothing"], empty["objects"], empty["error"]) == ("Nothing was found.", [], None)


@pytest.mark.slow
def test_a_browser_shows_the_masks_of_a_picture_that_is_dropped_chosen_or_an_example(
    project_with_data: Path, scenes: Scenes, tmp_path: Path
) -> None:
    _, green, red = scenes.facts["classes"][:3]
    (tmp_path / "<b>green.png").write_bytes(GREEN)
    (tmp_path / "red.tif").write_bytes(encoded(picture(90, 70, red=(8, 8, 64, 40)), "TIFF"))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    objects, rows = "document.querySelectorAll('#frame .mask')", "document.querySelectorAll('#objects li')"
    with serving(command(), project_with_data) as running, browser(tmp_path) as tab:
        tab.open(running.address)
        tab.until("document.querySelectorAll('#shelf img').length")
        assert tab.value("document.title") == "colours v1 · Slipway"
        assert tab.value("document.getElementById('hint').checkVisibility()")

        tab.drop("#stage", tmp_path / "<b>green.png")
        assert tab.until(f"{objects}.length") == 1
        assert tab.value(f"{rows}[0].innerText").split() == [green, "0.90"]
        box = tab.value("Object.fromEntries([...document.querySelector('.box').attributes].map(a => [a.name, a.value]))")
        [thing] = running.post(GREEN).json["objects"]
        assert [float(box[name]) for name in ("x", "y", "width", "height")] == thing["box"]
        assert tab.value("document.getElementById('name').textContent") == "<b>green.png · 120 × 80"
        assert tab.value("document.querySelectorAll('b').length") == 0
        assert tab.value("JSON.parse(document.getElementById('json').textContent).image") == "<b>green.png"
        assert re.fullmatch(
            r"[\d.]+ m?s for the model, [\d.]+ m?s in all", tab.value("document.getElementById('time').innerText")
        )

        tab.choose("#file", tmp_path / "broken.jpg")
        assert "broken.jpg (10 bytes) is no picture" in tab.until("document.getElementById('error').innerText")
        assert tab.value(f"{objects}.length") == 0

        # A format that browsers do not show: the server draws it.
        tab.choose("#file", tmp_path / "red.tif")
        tab.until("document.querySelector('#frame img')?.naturalWidth")
        assert tab.until(f"{rows}[0]?.innerText").split() == [red, "0.90"]
        assert tab.value("document.getElementById('error').checkVisibility()") is False

        tab.open(f"{running.address}?example=0")
        assert "scene_" in tab.until("document.getElementById('name').textContent")
        tab.until("document.getElementById('json').textContent")
        assert {address.split("/")[2] for address in tab.requests if address.startswith("http")} == {
            f"127.0.0.1:{running.port}"
        }
        assert [said for said in tab.complaints if "422" not in said] == []
