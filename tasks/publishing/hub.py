"""The Hugging Face Hub as a registry: a version is one commit and its tag; the latest is the highest tag. Tokens stay with the
hub's own client, which takes them from HF_TOKEN or from `hf auth login`."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from contracts.errors import SlipwayError
from contracts.files import read_json
from tasks.downloading.addresses import redacted
from tasks.downloading.retrying import hub_trouble, retried
from tasks.publishing.registry import Overtaken, Version, check_listing
from tasks.publishing.release import Release

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

FIRST_PAUSE = 1.0  # seconds
NOT_FOUND, STALE, CONFLICT = 404, 412, 409
ADVICE = {
    401: "; log in with `hf auth login` or set HF_TOKEN",
    403: "; the token has no right to write there: make one with the role write",
    404: "; there is no such repository, or the token may not see it",
}


@dataclass(frozen=True)
class HubRegistry:
    """A model repository of the hub."""

    repository: str
    private: bool

    @classmethod
    def at(cls, target: str, *, name: str, private: bool) -> HubRegistry:
        """hf://organisation/name, or hf://organisation with the name from the settings."""
        parts = target.removeprefix("hf://").split("/")
        if len(parts) > 2 or not all(re.fullmatch(r"\w[\w.\-]*", part) for part in parts):
            raise SlipwayError(f"publish.target = {redacted(target)}: use hf://organisation/name")
        return cls("/".join(parts if len(parts) == 2 else [*parts, name]), private)

    @cached_property
    def hub(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))

    @property
    def name(self) -> str:
        return self.repository.rsplit("/", 1)[-1]

    @property
    def address(self) -> str:
        return f"hf://{self.repository}"

    def check(self) -> str:
        user = self._call(lambda: self.hub.whoami())
        role = ((user.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise SlipwayError(
                f"{self.address}: the token of {user.get('name')} may only read: make one with the role write"
            )
        if self._call(lambda: self.hub.repo_exists(self.repository)):
            writable = " and can be written" if self._call(self._lets_us_write) else ""
            return f"{self.address} is there{writable}; logged in as {user.get('name')}"
        owner, names = self.repository.split("/")[0], [one["name"].lower() for one in (user, *(user.get("orgs") or ()))]
        if role == "write" and owner.lower() not in names:  # to tokens of other kinds the hub may not name all
            raise SlipwayError(
                f"{self.address} is not there, and {user.get('name')}, who is no member of {owner}, cannot make it"
            )
        return f"{self.address} will be made ({'private' if self.private else 'public'}); logged in as {user.get('name')}"

    def _lets_us_write(self) -> bool:
        """Whether the repository, which is there, says that it can be written; false where it cannot be asked.

        Raises:
            HfHubHTTPError: when it says that it cannot.
        """
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self.hub.auth_check(self.repository, write=True)
        except HfHubHTTPError as error:
            if error.response.status_code != NOT_FOUND:
                raise
            return False  # a hub of somebody's own that does not know the question
        return True

    def latest(self) -> Version | None:
        version = max(self._tags(), default=None)
        if version is None:
            return None
        name = f"v{version}"
        with tempfile.TemporaryDirectory() as scratch:
            path = self._call(
                lambda: self.hub.hf_hub_download(
                    self.repository, "lineage.json", revision=name, local_dir=scratch, force_download=True
                )
            )
            lineage = read_json(Path(path))
        return Version(name, str(lineage["model"]), str(lineage["metric"]), float(lineage["value"]))

    def locked(self) -> AbstractContextManager[object]:
        return nullcontext()

    def add(self, release: Release, latest: Version | None) -> tuple[str, str]:
        """One commit on top of the head we saw, checked by listing it, then tagged: only a tagged commit counts as a version."""
        self._call(lambda: self.hub.create_repo(self.repository, private=self.private, exist_ok=True))
        head = self._call(lambda: self.hub.repo_info(self.repository).sha)
        if self.latest() != latest:
            raise Overtaken
        version = f"v{max(self._tags(), default=0) + 1}"
        listed = release.files()
        commit = self._call(lambda: self._commit(release, listed, version, head))
        self._verify(listed, commit)
        self._call(
            lambda: self.hub.create_tag(self.repository, tag=version, revision=commit, tag_message=f"Slipway {version}")
        )
        return version, f"{self.address}@{version}"

    def _commit(self, release: Release, listed: list[dict[str, Any]], version: str, head: str | None) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        wanted = {file["path"] for file in listed}
        there = [path for path in self.hub.list_repo_files(self.repository, revision=head) if path != ".gitattributes"]
        operations = [CommitOperationAdd(path, release.path / path) for path in sorted(wanted)]
        operations += [CommitOperationDelete(path) for path in there if path not in wanted]
        message = f"Slipway {version}: {release.workload}, {release.metric} {release.value:.4f}"
        return self.hub.create_commit(self.repository, operations, commit_message=message, parent_commit=head).oid

    def _verify(self, listed: list[dict[str, Any]], commit: str) -> None:
        """Look at what the hub lists: every file with its size and, where the hub tells it, its sha256."""
        tree = self._call(lambda: list(self.hub.list_repo_tree(self.repository, recursive=True, revision=commit)))
        found: dict[str, Any] = {one.path: one for one in tree if hasattr(one, "size")}
        sizes = {path: one.size for path, one in found.items()}
        for file in listed:
            large = getattr(found.get(file["path"]), "lfs", None)
            if large and large.sha256 != file["sha256"]:
                sizes[file["path"]] = -1
        check_listing(listed, sizes, f"{self.address} at {commit[:12]}")

    def _tags(self) -> list[int]:
        """The numbers of the versions that are there."""
        if not self._call(lambda: self.hub.repo_exists(self.repository)):
            return []
        tags = self._call(lambda: self.hub.list_repo_refs(self.repository).tags)
        return [int(found.group(1)) for tag in tags if (found := re.fullmatch(r"v(\d+)", tag.name))]

    def _call(self, action: Callable[[], T]) -> T:
        """One call to the hub, tried again while it is busy; its errors in our words, without tokens."""
        try:
            return retried(action, what=self.address, passing=hub_trouble, pause=FIRST_PAUSE)
        except Exception as error:  # the hub's client raises its own kinds, those of httpx and those of the system
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status in (STALE, CONFLICT):
                raise Overtaken from None
            raise SlipwayError(f"publish.target: {self.address}: {redacted(error)}{ADVICE.get(status or 0, '')}") from None
