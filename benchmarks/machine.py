"""What a benchmark ran on, for whoever compares its numbers with their own."""

import platform

import psutil
import torch

from search.forms import processor


def machine() -> dict[str, object]:
    """Processor, cores, threads and versions."""
    return {
        "processor": processor(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
