"""Addresses of data and registries: local paths and what fsspec opens; how to open them, and how to show them without secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from contracts.errors import SlipwayError

PACKAGES = {
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "adl": "adlfs",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "webdav": "webdav4",
    "oss": "ossfs",
    "dropbox": "dropboxdrivefs",
    "gdrive": "gdrive-fsspec",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
}
# What can stand in an address or in another library's error text and must not be shown.
SECRETS = (
    re.compile(r"(?<=://)[^/@\s:]*:?[^/@\s]*@"),
    re.compile(r"(?i)(?<=bearer )[\w\-.~+/]+=*"),
    re.compile(r"\b(?:hf|ghp|gho|github_pat|api_org)_\w{8,}"),
    re.compile(
        r"(?i)(?<=[?&;])((?:sig|se|x-(?:amz|goog)-[\w-]+|[\w-]*(?:token|key|secret|password|signature|credential)[\w-]*)=)[^&\s'\"]+"
    ),
    re.compile(r"(?i)((?:account_?key|password|secret|token)\s*[=:]\s*)[^\s,;'\"&]+"),
)
SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY")


def scheme_of(address: str) -> str:
    """The part before ://, in lower case; "file" for a plain path (`C:\\data` is one)."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.\-]*)://", address)
    return found.group(1).lower() if found else "file"


def local_path(address: str) -> Path:
    """The path that a plain path or a file:// address names; a relative one starts at the project's folder."""
    text = address
    if scheme_of(address) == "file" and "://" in address:
        text = unquote(address.split("://", 1)[1])
        if re.match(r"/[A-Za-z]:[\\/]", text):
            text = text[1:]
    return Path(text).expanduser()


def shown(address: str) -> str:
    """The address as it may be printed and kept: without user, password and the values of its query (they sign requests)."""
    if scheme_of(address) == "file":
        return address
    parts = urlsplit(address)
    query = (
        "&".join(f"{item.split('=', 1)[0]}=***" if "=" in item else item for item in parts.query.split("&"))
        if parts.query
        else ""
    )
    return urlunsplit((parts.scheme, parts.netloc.rsplit("@", 1)[-1], parts.path, query, ""))


def redacted(text: object) -> str:
    """`text`, mostly another library's error, with everything that looks like a secret replaced by ***."""
    result = str(text)
    for variable in SECRET_VARIABLES:
        value = os.environ.get(variable, "")
        if len(value) >= 6:
            result = result.replace(value, "***")
    for pattern in SECRETS:
        result = pattern.sub(lambda found: "".join(found.groups()) + "***", result)
    return result


def filesystem(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path on it.

    Raises:
        SlipwayError: when nothing opens such addresses, naming the package that would.
    """
    import fsspec

    scheme = scheme_of(address)
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError:
        package = PACKAGES.get(scheme, "the fsspec implementation for it")
        raise SlipwayError(
            f"{shown(address)}: opening {scheme}:// addresses needs {package}: pip install {package}"
        ) from None
    except ValueError as error:
        if "rotocol" not in str(error):
            raise SlipwayError(f"{shown(address)} cannot be opened: {redacted(error)}") from None
        known = "a local path, file://, https://, s3://, gs://, az://, hf:// or another scheme that fsspec knows"
        raise SlipwayError(f"{shown(address)}: nothing opens {scheme}:// addresses; use {known}") from None
    except Exception as error:  # the cloud libraries raise their own kinds, for a missing account for one
        raise SlipwayError(f"{shown(address)} cannot be opened: {type(error).__name__}: {redacted(error)}") from None
