"""The download stage: against real servers and real archives, the malicious ones included."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from contracts.errors import SlipwayError
from contracts.settings import Source
from tasks import download
from tasks.downloading import fetching
from tasks.downloading.addresses import filesystem, local_path, redacted, shown
from tasks.downloading.archives import Limits, unpack
from tasks.downloading.fetching import digest, fetch
from tests.tasks.file_server import FileServer

CONTENT = bytes(range(256)) * 12_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(fetching, "FIRST_PAUSE", 0.001)
    return folder


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(CONTENT) as server:
        yield server


def get(server: FileServer, path: str = "data.bin", **more: Any) -> bytes:
    fetched = fetch(Source(address=server.url(path), **more), Path("store"))
    return fetched.path.read_bytes()


def run(*sources: Any, num_samples: int = 3) -> dict[str, Any]:
    """Run the stage with these sources and give its download.json."""
    Path("params.yaml").write_text(
        json.dumps({"segmentation": {"download": {"sources": list(sources), "num_samples": num_samples}}}), encoding="utf-8"
    )
    download.run("segmentation")
    return json.loads(Path("data/download/segmentation/download.json").read_text(encoding="utf-8"))


def raw_files() -> dict[str, bytes]:
    raw = Path("data/download/segmentation/raw")
    return {path.relative_to(raw).as_posix(): path.read_bytes() for path in raw.rglob("*") if path.is_file()}


# The web


def test_a_connection_cut_in_the_middle_goes_on_where_it_broke(server: FileServer) -> None:
    server.cuts = [1_500_000, 700_000]
    assert get(server) == CONTENT
    ranges = [request.get("Range", "") for request in server.requests]
    assert ranges[0] == "" and len(ranges) == 3
    assert all(int(one.removeprefix("bytes=").rstrip("-")) > 0 for one in ranges[1:])


def test_what_a_failed_run_got_is_where_the_next_run_goes_on(server: FileServer) -> None:
    server.cuts = [2_000_000] + [0] * 20
    with pytest.raises(SlipwayError, match=r"5 attempts failed.*bytes that came are kept"):
        get(server)
    server.requests.clear()
    server.cuts = []
    assert get(server) == CONTENT
    assert len(server.requests) == 1 and server.requests[0]["Range"] != "bytes=0-"
    assert server.requests[0]["If-Range"] == '"one"'


def test_a_file_that_changed_between_two_attempts_starts_anew(server: FileServer) -> None:
    server.cuts = [1_500_000] + [0] * 20
    with pytest.raises(SlipwayError):
        get(server)
    server.content, server.etag, server.cuts = CONTENT[::-1], '"two"', []
    assert get(server) == CONTENT[::-1]


@pytest.mark.parametrize("content", [CONTENT[:1_000_000], CONTENT[::-1], CONTENT + b"more"])
def test_a_complete_transfer_is_taken_again_only_if_the_file_is_still_the_same(server: FileServer, content: bytes) -> None:
    get(server)
    server.requests.clear()
    assert get(server) == CONTENT
    assert server.requests[0]["Range"] == f"bytes={len(CONTENT)}-"
    server.content, server.etag = content, '"two"'
    assert get(server) == content


@pytest.mark.parametrize(("etag", "ranges"), [(None, True), ('W/"weak"', True), ('"one"', False)])
def test_a_server_that_cannot_resume_is_read_from_the_start(server: FileServer, etag: str | None, ranges: bool) -> None:
    server.etag, server.ranges, server.cuts = etag, ranges, [1_500_000, 1_600_000]
    assert get(server) == CONTENT


def test_a_busy_server_is_asked_again(server: FileServer) -> None:
    server.statuses = [503, 429, 500]
    assert get(server) == CONTENT


def test_a_length_that_is_not_kept_is_an_error_and_nothing_is_complete(server: FileServer) -> None:
    server.promised = len(CONTENT) + 10
    with pytest.raises(SlipwayError, match="attempts failed"):
        run(server.url("data.bin"))
    assert not Path("data/download/segmentation").exists()


@pytest.mark.parametrize(("status", "words"), [(404, "nothing at this address"), (403, "no right"), (401, "credentials")])
def test_a_refusal_is_final_and_says_why(server: FileServer, status: int, words: str) -> None:
    server.statuses = [status] * 9
    with pytest.raises(SlipwayError, match=words):
        get(server)
    assert len(server.requests) == 1


def test_a_wrong_sha256_is_an_error_that_keeps_nothing(server: FileServer) -> None:
    with pytest.raises(SlipwayError, match=f"has the sha256 {SHA256}, and params.yaml says 0000"):
        run({"address": server.url("data.bin"), "sha256": "0" * 64})
    assert not Path("data/download/segmentation").exists()
    assert not list(Path("runs").rglob("*.partial"))
    assert run({"address": server.url("data.bin"), "sha256": SHA256})["sources"][0]["sha256"] == SHA256


def test_nobody_listening_is_said_with_the_address() -> None:
    with pytest.raises(SlipwayError, match=r"http://127.0.0.1:9/x.zip could not be downloaded, 5 attempts"):
        fetch(Source(address="http://127.0.0.1:9/x.zip"), Path("store"))


# The stage


def test_without_sources_the_embedded_data_set_is_written() -> None:
    report = run(num_samples=4)
    assert report["sources"] == [] and report["embedded"] == 4
    assert report["files"] == len(raw_files()) > 4


def test_a_failing_source_leaves_the_old_data_and_the_other_transfers(server: FileServer) -> None:
    run(server.url("first.bin"))
    Path("mine").mkdir()
    Path("mine/a.txt").write_text("a", encoding="utf-8")
    (Path("mine") / "broken.zip").write_bytes(b"PK nonsense")
    with pytest.raises(SlipwayError, match=r"broken.zip is damaged"):
        run(server.url("second.bin"), "mine/broken.zip")
    assert raw_files() == {"first.bin": CONTENT}
    assert [path.stat().st_size for path in Path("runs").rglob("second.bin.partial")] == [len(CONTENT)]
    server.requests.clear()
    run(server.url("second.bin"), "mine/a.txt")
    assert raw_files() == {"second.bin": CONTENT, "a.txt": b"a"}
    assert server.requests[0]["Range"] == f"bytes={len(CONTENT)}-"
    assert not list(Path("runs").rglob("*.partial"))


def test_a_zip_from_the_web_is_unpacked_into_its_place(server: FileServer) -> None:
    server.content = zipped({"one/a.jpg": b"a", "b.jpg": b"b", "__MACOSX/._a.jpg": b"x", ".DS_Store": b"x"})
    report = run({"address": server.url("Circuit1.zip?sv=2020&sig=SECRETSECRET"), "into": "images/Circuit1"})
    assert raw_files() == {"images/Circuit1/one/a.jpg": b"a", "images/Circuit1/b.jpg": b"b"}
    assert report["sources"][0]["left_out"] == 2 and report["sources"][0]["revision"] == '"one"'
    assert "SECRETSECRET" not in json.dumps(report) and report["files"] == 2


def test_a_leftover_of_a_killed_run_is_swept_away() -> None:
    leftover = Path("data/download/.segmentation.99999999.partial/raw")
    leftover.mkdir(parents=True)
    run()
    assert not leftover.exists()


def test_the_same_address_with_other_content_is_said(server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    run(server.url("data.bin"))
    assert "changed since" not in capsys.readouterr().out
    server.content, server.etag = b"other", '"two"'
    run(server.url("data.bin"))
    assert "has changed since it was last downloaded" in capsys.readouterr().out


def test_what_is_unchanged_at_its_address_is_not_fetched_again(
    server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content = zipped({"a.jpg": b"a" * 5000, "b.jpg": b"b"})
    source = {"address": server.url("set.zip?sig=one"), "into": "images"}
    first = run(source)
    capsys.readouterr()
    server.requests.clear()
    again = {**source, "address": server.url("set.zip?sig=two")}
    assert run(again) == first and "is unchanged: not fetched again" in capsys.readouterr().out
    assert [request["Range"] for request in server.requests] == [f"bytes={len(server.content)}-"]
    pinned = {**again, "sha256": first["sources"][0]["sha256"]}
    server.requests.clear()
    assert run(pinned) == first and server.requests == []
    Path("data/download/segmentation/raw/images/b.jpg").write_bytes(b"B")
    assert run(pinned) == first and raw_files()["images/b.jpg"] == b"b" and len(server.requests) == 1
    server.content, server.etag = zipped({"c.jpg": b"c"}), '"two"'
    run(again)
    assert raw_files() == {"images/c.jpg": b"c"}


def test_an_unchanged_folder_of_a_store_is_not_fetched_again(capsys: pytest.CaptureFixture[str]) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/again/a.txt": b"a", "/again/sub/b.txt": b"b"})
    first = run("memory://again")
    assert run("memory://again") == first and "not fetched again" in capsys.readouterr().out
    memory.pipe("/again/a.txt", b"A")
    run("memory://again")
    assert raw_files() == {"a.txt": b"A", "sub/b.txt": b"b"}


# Folders of the user's own


def test_a_local_folder_is_copied_and_stays_as_it_was(project: Path) -> None:
    mine = project / "mine"
    (mine / "images").mkdir(parents=True)
    (mine / "images" / "a.jpg").write_bytes(b"a")
    (mine / ".git").mkdir()
    (mine / ".git" / "config").write_bytes(b"x")
    (mine / ".hidden").write_bytes(b"x")
    (mine / "linked.jpg").symlink_to("images/a.jpg")
    (mine / "images" / "a.jpg").chmod(0o400)
    before = (mine / "images" / "a.jpg").stat()
    report = run("mine")
    assert raw_files() == {"images/a.jpg": b"a", "linked.jpg": b"a"}
    assert report["sources"][0]["sha256"] == digest(Path("data/download/segmentation/raw"))[0]
    copy = Path("data/download/segmentation/raw/images/a.jpg").stat()
    assert copy.st_ino != before.st_ino and copy.st_mode & stat.S_IWUSR and copy.st_mtime_ns == before.st_mtime_ns
    after = (mine / "images" / "a.jpg").stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, 1)
    assert run({"address": "file://mine", "sha256": report["sources"][0]["sha256"]})["files"] == 2
    with pytest.raises(SlipwayError, match=r"params.yaml says"):
        run({"address": f"file://{mine}", "sha256": "0" * 64})
    assert (mine / "images" / "a.jpg").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: (folder / "gone.jpg").symlink_to("nowhere"), "a link to nothing"),
        (lambda folder: (folder / "round").symlink_to(folder), "no end to it"),
        (lambda folder: os.mkfifo(folder / "pipe"), "no regular file"),
    ],
)
def test_a_local_folder_that_cannot_be_copied_whole_is_refused(
    project: Path, make: Callable[[Path], None], words: str
) -> None:
    (project / "mine").mkdir()
    make(project / "mine")
    with pytest.raises(SlipwayError, match=words):
        run("mine")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere/at/all", "does not exist"),
        (".", "holds the folder that it would be copied to"),
        ({"address": "params.yaml", "into": "../out"}, "must stay inside"),
        ({"address": "params.yaml", "into": "C:\\out"}, "must stay inside"),
        ({"address": "params.yaml", "into": "/out"}, "must stay inside"),
        ({"address": "params.yaml", "revision": "main"}, "`revision` is for hf://"),
        ("carrier-pigeon://coop/data.zip", "nothing opens carrier-pigeon://"),
        ("oss://bucket/data.zip", "pip install ossfs"),
        ("hf://alone", "is not hf://organisation/name"),
    ],
)
def test_a_source_that_cannot_be_is_refused_with_the_way_out(source: Any, words: str) -> None:
    with pytest.raises(SlipwayError, match=words):
        run(source)


def test_two_sources_never_write_over_each_other() -> None:
    for name in "one", "two":
        Path(name).mkdir()
        Path(name, "a.txt").write_text(name, encoding="utf-8")
    with pytest.raises(SlipwayError, match=r"another source put a.txt"):
        run("one", "two")
    with pytest.raises(SlipwayError, match=r"another source put a.txt"):
        run("one/a.txt", "two/a.txt")
    run("one", {"address": "two", "into": "second"})
    assert sorted(raw_files()) == ["a.txt", "second/a.txt"]


# What fsspec opens


def test_a_file_and_a_folder_in_a_store_are_downloaded() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/bucket/set/a.txt": b"a", "/bucket/set/sub/b.txt": b"b", "/bucket/c.zip": zipped({"c.txt": b"c"})})
    report = run({"address": "memory://bucket/set", "into": "set"}, "memory://bucket/c.zip")
    assert raw_files() == {"set/a.txt": b"a", "set/sub/b.txt": b"b", "c.txt": b"c"}
    assert [one["files"] for one in report["sources"]] == [2, 1] and report["sources"][0]["revision"]
    with pytest.raises(SlipwayError, match=r"memory://bucket/nothing.txt cannot be downloaded: FileNotFoundError"):
        run("memory://bucket/nothing.txt")


# Archives


def zipped(files: dict[str, bytes], *, modes: dict[str, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            file.writestr(info, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def tarred(members: list[tuple[bytes, bytes, str, str]], mode: Any = "w") -> bytes:
    """A tar of members (kind, content, name, link)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for kind, content, name, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), link
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


REG, SYM, LNK, CHR, FIFO = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"])
def test_tars_of_every_compression_come_out(project: Path, suffix: str) -> None:
    mode = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}.get(suffix, "w")
    content = tarred(
        [(REG, b"a" * 5000, "./one/a.jpg", ""), (SYM, b"", "one/same.jpg", "a.jpg"), (LNK, b"", "b.jpg", "one/a.jpg")], mode
    )
    if suffix == ".tar.zst":
        import pyarrow as pa

        content = pa.Codec("zstd").compress(content, asbytes=True)
    archive = project / f"data{suffix}"
    archive.write_bytes(content)
    run(archive.name)
    assert raw_files() == dict.fromkeys(["one/a.jpg", "one/same.jpg", "b.jpg"], b"a" * 5000)
    assert not any(path.is_symlink() for path in Path("data").rglob("*"))


MALICIOUS: dict[str, tuple[str, bytes, str]] = {
    "zip parent": ("x.zip", zipped({"../evil": b"x"}), "'../evil' would be written outside"),
    "zip deep parent": ("x.zip", zipped({"a/../../evil": b"x"}), "outside the folder"),
    "zip absolute": ("x.zip", zipped({"/tmp/evil": b"x"}), "outside the folder"),
    "zip drive": ("x.zip", zipped({"C:evil": b"x"}), "outside the folder"),
    "zip backslash": ("x.zip", zipped({"..\\evil": b"x"}), "outside the folder"),
    "zip link out": ("x.zip", zipped({"a": b"/etc/passwd"}, modes={"a": stat.S_IFLNK | 0o777}), "a link out of the folder"),
    "zip link up": ("x.zip", zipped({"s/a": b"../../up"}, modes={"s/a": stat.S_IFLNK | 0o777}), "a link out of the folder"),
    "zip device": ("x.zip", zipped({"a": b""}, modes={"a": stat.S_IFCHR | 0o666}), "a device or a pipe"),
    "zip twice": ("x.zip", zipped({"a": b"1", "./a": b"2"}), "is there already"),
    "zip file as folder": ("x.zip", zipped({"a": b"1", "a/b": b"2"}), "needs a folder where"),
    "zip control": ("x.zip", zipped({"a\nb": b"1"}), "control characters"),
    "zip cut": ("x.zip", zipped({"a": os.urandom(5000)})[:3000], "is damaged"),
    "tar parent": ("x.tar", tarred([(REG, b"x", "../evil", "")]), "outside the folder"),
    "tar absolute": ("x.tar", tarred([(REG, b"x", "/evil", "")]), "outside the folder"),
    "tar symlink out": ("x.tar", tarred([(SYM, b"", "a", "../up")]), "a link out of the folder"),
    "tar symlink absolute": ("x.tar", tarred([(SYM, b"", "a", "/etc/passwd")]), "a link out of the folder"),
    "tar hardlink out": ("x.tar", tarred([(LNK, b"", "a", "../../up")]), "a link out of the folder"),
    "tar link to nothing": ("x.tar", tarred([(SYM, b"", "a", "b")]), "no file of the archive"),
    "tar links in a circle": ("x.tar", tarred([(SYM, b"", "a", "b"), (SYM, b"", "b", "a")]), "no file of the archive"),
    "tar through a link": ("x.tar", tarred([(SYM, b"", "d", "/tmp"), (REG, b"x", "d/evil", "")]), "out of the folder"),
    "tar device": ("x.tar", tarred([(CHR, b"", "a", "")]), "a device or a pipe"),
    "tar pipe": ("x.tar", tarred([(FIFO, b"", "a", "")]), "a device or a pipe"),
    "tar cut": ("x.tar", tarred([(REG, b"x" * 50_000, "a", "")])[:20_000], "is damaged"),
    "tar.gz cut": ("x.tar.gz", tarred([(REG, os.urandom(50_000), "a", "")], "w:gz")[:20_000], "is damaged"),
    "tar.zst of nonsense": ("x.tar.zst", b"nonsense" * 99, "x.tar.zst"),
    "no tar": ("x.tar", b"nonsense" * 999, "is damaged"),
    "no zip": ("x.zip", b"nonsense", "is damaged"),
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_an_archive_that_would_leave_its_folder_or_is_damaged_is_refused_by_name(project: Path, case: str) -> None:
    name, content, words = MALICIOUS[case]
    (project / name).write_bytes(content)
    with pytest.raises(SlipwayError, match=words):
        run(name)
    assert {path.name for path in project.iterdir()} <= {name, "params.yaml", "data", "runs"}
    assert not Path("data/download/segmentation").exists() and not list(project.glob("data/download/.*"))


def test_a_byte_that_flipped_is_found_by_the_archives_own_check(project: Path) -> None:
    content = bytearray(zipped({"a": os.urandom(5000)}))
    content[2000] ^= 1
    (project / "x.zip").write_bytes(content)
    with pytest.raises(SlipwayError, match="is damaged"):
        run("x.zip")


def test_a_bomb_is_refused_before_and_while_it_unpacks(project: Path) -> None:
    (project / "x.zip").write_bytes(zipped({"a": bytes(3_000_000)}))
    (project / "x.tar.gz").write_bytes(tarred([(REG, bytes(3_000_000), "a", ""), (REG, bytes(3_000_000), "b", "")], "w:gz"))
    for name, limit in (("x.zip", 2_000_000), ("x.tar.gz", 4_000_000)):
        with pytest.raises(SlipwayError, match="looks like a bomb"):
            unpack(project / name, project / "out", limits=Limits(limit))
    with pytest.raises(SlipwayError, match="more than 1 members"):
        unpack(project / "x.tar.gz", project / "out2", limits=Limits(1 << 30, members=1))


def test_an_archive_larger_than_the_disk_is_refused_before_it_fills_it(project: Path) -> None:
    huge = tarfile.TarInfo("a")
    huge.size = 1 << 55
    (project / "x.tar").write_bytes(huge.tobuf())
    with pytest.raises(SlipwayError, match="make room"):
        unpack(project / "x.tar", project / "out", limits=Limits(1 << 60))


@pytest.mark.parametrize("name", ["con", "aux.txt", "a/com1.jpg", "dot.", "space ", "what?.jpg", "12:30.jpg", "a<b"])
def test_names_that_windows_cannot_hold_are_refused_there_and_only_there(project: Path, name: str) -> None:
    (project / "x.zip").write_bytes(zipped({name: b"x"}))
    with pytest.raises(SlipwayError, match="Windows cannot hold"):
        unpack(project / "x.zip", project / "windows", windows=True)
    unpack(project / "x.zip", project / "here", windows=False)


def test_an_encrypted_zip_is_named(project: Path) -> None:
    content = bytearray(zipped({"a": b"x"}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (project / "x.zip").write_bytes(content)
    with pytest.raises(SlipwayError, match="encrypted"):
        run("x.zip")


# Addresses


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("https://me:pass@host.org/a.zip", "https://host.org/a.zip"),
        ("https://host/a.zip?sv=1&sig=abc%3D&id=7", "https://host/a.zip?sv=***&sig=***&id=***"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("../data", "../data"),
        ("C:\\data", "C:\\data"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(address: str, public: str) -> None:
    assert shown(address) == public


def test_secrets_in_an_error_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "plainlooking123")
    text = "Authorization: Bearer abc.def-1; https://u:p@h/x?X-Amz-Signature=00ff&n=1 hf_abcdefghijkl AccountKey=zz== plainlooking123"
    clean = redacted(text)
    for secret in ("abc.def", "u:p", "00ff", "hf_abc", "zz==", "plainlooking123"):
        assert secret not in clean
    assert "n=1" in clean and "https://***h/x" in clean


def test_local_addresses_are_read_alike_with_and_without_scheme() -> None:
    assert local_path("file://registry") == local_path("registry") == Path("registry")
    assert local_path("file:///abs/a%20b") == Path("/abs/a b")
    assert local_path("file:///C:/data").as_posix() == "C:/data"
    assert filesystem("memory://a/b")[1].endswith("a/b")
