"""What ranks can do on a platform, as data about it and about the installed torch: any machine can be asked about from any other."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sys
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from contracts.plan import Hardware
from engine.agent import TORCHRUN

Group = Literal["nccl", "gloo"]


@dataclass(frozen=True)
class Installed:
    """What the installed packages can do.

    `libuv`: torch's store was built with it (the wheels for Windows are not: github.com/pytorch/pytorch/issues/139990).
    `ranks_start`: whether ranks found each other when it was tried; None where nobody tried. `compiler`: what `torch.compile`
    needs is there. The defaults are those of a full installation on Linux.
    """

    distributed: bool = True
    libuv: bool = True
    ranks_start: bool | None = None
    compiler: bool = True
    deepspeed: bool = True


@dataclass(frozen=True)
class Meeting:
    """Whether the ranks of one machine can work together, through which library (None: they cannot), and why."""

    group: Group | None
    reason: str


def process_group(device: Literal["cuda", "cpu"], platform: str) -> Group:
    """The library that carries tensors between ranks; `platform` as in Hardware ("Windows AMD64")."""
    return "nccl" if device == "cuda" and platform.startswith("Linux") else "gloo"


def meeting(device: Literal["cuda", "cpu"], platform: str, installed: Installed) -> Meeting:
    """How ranks on this platform meet."""
    if not installed.distributed:
        return Meeting(None, "this torch is built without torch.distributed")
    if installed.ranks_start is False:
        return Meeting(None, "ranks did not find each other when it was tried: `slipway doctor` says more")
    group = process_group(device, platform)
    reason = group
    if device == "cuda" and group == "gloo":
        reason += " (NCCL exists for Linux only)"
    if not installed.libuv:
        reason += "; they find each other through a file, as this torch is built without libuv"
    return Meeting(group, reason)


def torchrun(ranks: int, folder: Path, *, libuv: bool) -> list[str]:
    """What starts so many ranks of this machine, as words for Python; what they are follows.

    torchrun's own store asks for libuv whatever USE_LIBUV says (github.com/pytorch/pytorch/issues/178600), a file in `folder`
    does not. For logs that nobody asked for it would leave a folder of empty folders behind in the system's temporary one.
    """
    file = ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={folder / 'rendezvous'}"]
    file += [f"--rdzv-id={uuid.uuid4().hex}", "--local-addr=127.0.0.1"]
    meet = ["--standalone"] if libuv else file
    return ["-m", TORCHRUN, *meet, f"--nproc-per-node={ranks}", f"--log-dir={os.devnull}", "--monitor-interval=0.1"]


def process_group_environment(*, libuv: bool) -> dict[str, str]:
    """The variables that ranks need to find each other: a torch without libuv must be told not to ask for it."""
    # The agent's shared store keeps keys of an earlier start, on which a restart can hang; and it would want libuv.
    return {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **({} if libuv else {"USE_LIBUV": "0"})}


def look_around(hardware: Hardware) -> Installed:
    """What is installed here. Nothing slow on Linux; elsewhere torch is asked, and on Windows two ranks are tried."""
    linux = hardware.platform.startswith("Linux")
    compiler = _compiles_for_gpus() if hardware.devices else _compiles_for_cpu()
    deepspeed = linux and importlib.util.find_spec("deepspeed") is not None
    if linux:  # every wheel for it has these
        return Installed(compiler=compiler, deepspeed=deepspeed)
    import torch.distributed as dist

    found = Installed(distributed=dist.is_available(), libuv=has_libuv(), compiler=compiler, deepspeed=False)
    places = len(hardware.devices) or hardware.cores
    if not hardware.platform.startswith("Windows") or places < 2 or not found.distributed:
        return found
    return replace(found, ranks_start=_ranks_start("cuda" if hardware.devices else "cpu"))


@functools.cache
def _ranks_start(device: Literal["cuda", "cpu"]) -> bool:
    from engine.selftest import launch

    return not launch(2, device=device, group="gloo").fault


@functools.cache
def has_libuv() -> bool:
    """Whether torch's store is built with libuv: it is asked for one. Every wheel for Linux has it."""
    if sys.platform == "linux":
        return True
    import torch.distributed as dist

    if not dist.is_available():
        return False
    try:
        dist.TCPStore("127.0.0.1", 0, 1, True, use_libuv=True)  # pyright: ignore[reportPrivateImportUsage]
    except RuntimeError:
        return False
    return True


def _compiles_for_cpu() -> bool:
    return any(shutil.which(name) for name in filter(None, (os.environ.get("CXX"), "g++", "c++", "clang++", "cl")))


def _compiles_for_gpus() -> bool:
    return importlib.util.find_spec("triton") is not None
