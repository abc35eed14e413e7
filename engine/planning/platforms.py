"""What ranks can do on a platform, as data about it and about the installed torch: any machine can be asked about from any other."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from typing import Literal

from contracts.plan import Hardware

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
        libuv = "" if installed.libuv else "; torchrun's own store wants libuv, which this torch is built without"
        return Meeting(None, f"ranks did not find each other when it was tried{libuv}: `slipway doctor` says more")
    group = process_group(device, platform)
    reason = group
    if device == "cuda" and group == "gloo":
        reason += " (NCCL exists for Linux only)"
    if not installed.libuv:
        reason += "; USE_LIBUV=0, as this torch is built without libuv"
    return Meeting(group, reason)


def process_group_environment(platform: str, *, libuv: bool) -> dict[str, str]:
    """The variables that ranks need to find each other: a torch without libuv must be told not to ask for it."""
    return {} if libuv else {"USE_LIBUV": "0"}


def look_around(hardware: Hardware) -> Installed:
    """What is installed here. Nothing slow on Linux; elsewhere torch is asked, and several GPUs on Windows are tried."""
    linux = sys.platform == "linux"
    compiler = _compiles_for_gpus() if hardware.devices else _compiles_for_cpu()
    deepspeed = linux and importlib.util.find_spec("deepspeed") is not None
    if linux:  # every wheel for it has these
        return Installed(compiler=compiler, deepspeed=deepspeed)
    import torch.distributed as dist

    found = Installed(distributed=dist.is_available(), libuv=has_libuv(), compiler=compiler, deepspeed=False)
    if sys.platform != "win32" or len(hardware.devices) < 2 or not found.distributed:
        return found
    from engine.selftest import launch

    fault = launch(2, device="cuda", group="gloo").fault
    return Installed(True, found.libuv, not fault, compiler, deepspeed=False)


def has_libuv() -> bool:
    """Whether torch's store is built with libuv: it is asked for one."""
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
