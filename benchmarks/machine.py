"""What a benchmark ran on, for whoever compares its numbers with their own."""

import platform
from pathlib import Path

import psutil
import torch


def machine() -> dict[str, object]:
    """Processor, cores, threads and versions."""
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
