"""Memory as training sees it: what it takes, and running out of it."""

from __future__ import annotations

import torch

# Of the device's memory; above it, the next batch that is a little larger may be too large.
TIGHT = 0.9
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def is_tight(device: torch.device) -> bool:
    """Whether training has come close to filling the device. Always false on a CPU, whose memory is shared and swapped."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    return (
        torch.cuda.max_memory_reserved(device) > TIGHT * (free + torch.cuda.memory_reserved(device)) or free < 0.02 * total
    )


def release(device: torch.device) -> None:
    """Give what is cached back to the device, so that smaller pieces find room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
