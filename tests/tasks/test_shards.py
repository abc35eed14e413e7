"""Some rows and columns of the hub's data sets: what is taken, how much of it is sent, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from contracts.errors import SlipwayError
from contracts.records import Record
from tasks import download
from tasks.downloading import fetching
from tests.tasks.hub_server import HubServer, Repository
from workloads.captioning.labels import parse
from workloads.captioning.settings import CaptioningParse

ADDRESS, ROWS_PER_SHARD, ROWS_PER_GROUP = "hf://datasets/someone/pictures", 60, 20
RAW = Path("data/download/captioning/raw")


def table(first: int, num: int) -> pa.Table:
    """Rows of a small picture, its caption and 20 kB that nobody wants."""
    rows = range(first, first + num)
    return pa.table(
        {
            "waste": [np.random.default_rng(row).bytes(20_000) for row in rows],
            "image": [{"bytes": picture(row), "path": f"{row}.png"} for row in rows],
            "alt_text": [f"picture number {row}" for row in rows],
        }
    )


def picture(seed: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def shard(first: int, num: int = ROWS_PER_SHARD) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(table(first, num), buffer, row_group_size=ROWS_PER_GROUP)
    return buffer.getvalue().to_pybytes()


def arrow(first: int, num: int) -> bytes:
    buffer, rows = pa.BufferOutputStream(), table(first, num)
    with pa.ipc.new_stream(buffer, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=ROWS_PER_GROUP)
    return buffer.getvalue().to_pybytes()


SHARDS = {f"data/train-{number:05}-of-00003.parquet": shard(100 * number) for number in range(3)}
FILES = {**SHARDS, "data/test-00000-of-00001.parquet": shard(900), "README.md": b"# Pictures"}


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    import huggingface_hub.constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetching, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.repositories["someone/pictures"] = Repository()
        server.repositories["someone/pictures"].commit(FILES)
        yield server


def run(**source: Any) -> dict[str, Any]:
    """The stage with one source, and what download.json says of it."""
    section = {"download": {"sources": [{"address": ADDRESS, "into": "set", **source}]}}
    Path("params.yaml").write_text(json.dumps({"captioning": section}))
    download.run("captioning")
    return json.loads((RAW.parent / "download.json").read_text())["sources"][0]


def sent(server: HubServer, name: str) -> int:
    return sum(count for path, count in server.sent.items() if path.endswith(name))


def test_the_rows_and_columns_that_are_wanted_come_and_little_else_is_sent(server: HubServer) -> None:
    told = run(rows=70, columns=["alt_text", "image"])
    assert told["shards"] == {
        "data/test-00000-of-00001.parquet": 60,
        "data/train-00000-of-00003.parquet": 60,
        "data/train-00001-of-00003.parquet": 10,
    }
    assert (told["rows"], told["columns"]) == (70, ["alt_text", "image"])
    assert told["revision"] == server.repositories["someone/pictures"].commits[-1][0]
    found = pq.read_table(RAW / "set/data/train-00001-of-00003.parquet")
    assert found.equals(table(100, 10).select(["alt_text", "image"]))
    assert pq.ParquetFile(RAW / "set/data/train-00000-of-00003.parquet").num_row_groups == 3
    whole = {name: len(content) for name, content in FILES.items()}
    assert sum(server.sent.values()) < sum(whole.values()) / 10
    assert sent(server, "train-00000-of-00003.parquet") < whole["data/train-00000-of-00003.parquet"] / 5
    assert sent(server, "train-00002-of-00003.parquet") == sent(server, "README.md") == 0


def test_a_row_group_is_the_least_that_is_sent_of_all_columns(server: HubServer) -> None:
    run(rows=5)
    for name in ("train-00000-of-00003.parquet", "test-00000-of-00001.parquet"):
        assert 1 / 4 < sent(server, name) / len(FILES[f"data/{name}"]) < 1 / 2, "one row group of three, and the footer"


def test_rows_have_the_keys_that_they_have_in_the_whole_data_set() -> None:
    def keys() -> dict[str, Any]:
        found = parse(RAW, CaptioningParse(), processes=1)
        return {one.key: (one.targets, one.inputs["sha256"], one.split) for one in found if isinstance(one, Record)}

    run(rows=25, columns=["image", "alt_text"])
    part = keys()
    run()
    whole = keys()
    assert len(part) == 50 and len(whole) == 240
    assert part.items() <= whole.items()


def test_an_arrow_shard_is_read_as_far_as_its_rows_are_wanted(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.downloading.shards.AHEAD", 1 << 18)
    server.repositories["someone/pictures"].commit({"train/data-00000-of-00001.arrow": arrow(0, 200)})
    assert run(rows=30, columns=["image"])["shards"] == {"train/data-00000-of-00001.arrow": 30}
    assert pq.read_table(RAW / "set/train/data-00000-of-00001.parquet").equals(table(0, 30).select(["image"]))
    assert sum(server.sent.values()) < len(arrow(0, 200)) / 2


def test_a_part_of_the_repository_is_named_by_folder_file_or_pattern(server: HubServer) -> None:
    for part, shards in (("data", 2), ("data/train-*.parquet", 1), ("data/test-00000-of-00001.parquet", 1)):
        assert len(run(address=f"{ADDRESS}/{part}", rows=3)["shards"]) == shards, part


def test_what_came_is_used_again_and_another_part_is_fetched(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(rows=30)
    server.sent.clear()
    assert run(rows=30) == first
    assert "is unchanged: not fetched again" in capsys.readouterr().out
    assert not server.sent
    assert run(rows=31)["shards"] != first["shards"]
    assert run(rows=31, columns=["image"])["sha256"] != first["sha256"]
    assert pq.read_table(RAW / "set/data/test-00000-of-00001.parquet").column_names == ["image"]


def test_a_named_commit_needs_no_hub_afterwards(server: HubServer) -> None:
    commit = server.repositories["someone/pictures"].commits[-1][0]
    first = run(rows=30, revision=commit)
    server.repositories["someone/pictures"].commit({"data/train-00000-of-00003.parquet": shard(500)})
    server.requests.clear()
    assert run(rows=30, revision=commit) == first
    assert server.requests == []


def test_the_shards_that_a_failed_run_brought_are_not_asked_for_again(server: HubServer) -> None:
    server.faults = {"GET .*train-00001": [403] * 9}
    with pytest.raises(SlipwayError, match=f"{ADDRESS} cannot be downloaded: .*403"):
        run(rows=100, columns=["image"])
    assert not RAW.exists()
    server.faults.clear()
    server.sent.clear()
    assert sum(run(rows=100, columns=["image"])["shards"].values()) == 160
    assert sent(server, "train-00000-of-00003.parquet") == 0 < sent(server, "train-00001-of-00003.parquet")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"columns": ["image", "caption"]}, "'caption', which data/test-.* has not; it has waste, image, alt_text"),
        (
            {"address": f"{ADDRESS}/README.md", "rows": 3},
            "no parquet or Arrow files .* but README.md; .*refs/convert/parquet",
        ),
        ({"address": f"{ADDRESS}/none", "rows": 3}, "no parquet or Arrow files there"),
        ({"address": "https://127.0.0.1:9/x.parquet", "rows": 3}, "`rows` and `columns` are for hf:// data sets"),
        ({"rows": 0}, "sources.0.rows = 0"),
        ({"columns": []}, "sources.0.columns = "),
    ],
)
def test_what_cannot_be_taken_is_said(source: dict[str, Any], words: str) -> None:
    with pytest.raises(SlipwayError, match=words):
        run(**source)


def test_a_name_that_leads_out_of_the_download_is_refused(server: HubServer) -> None:
    server.repositories["someone/pictures"].commit({"data/../../../x.parquet": shard(0)})
    with pytest.raises(SlipwayError, match="would be written outside the download"):
        run(rows=3)


def test_a_damaged_shard_is_named(server: HubServer) -> None:
    server.repositories["someone/pictures"].commit({"data/train.parquet": b"PAR1" + bytes(1000) + b"PAR1"})
    with pytest.raises(SlipwayError, match="data/train.parquet cannot be read"):
        run(rows=3)
