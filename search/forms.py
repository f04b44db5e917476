"""The forms chosen by measurement, kept so that the same search deploys the same network again."""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from models.checkpoint import write_text
from models.forms import ChosenForm
from search.spec import SearchSpec

_CHOICES = TypeAdapter(tuple[ChosenForm, ...])


def forms_file(spec: SearchSpec, *, cache: Path, threads: int) -> Path:
    """Name the choices of one search by all that its numbers and its machine's times depend on."""
    facts = spec.model_dump(mode="json", exclude={"name", "tags"}) | {
        "threads": threads,
        "matnas": version("matnas"),
        "torch": torch.__version__,
        "processor": processor(),
        "cards": [torch.cuda.get_device_name(card) for card in range(torch.cuda.device_count())],
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return cache / "forms" / f"{key}.json"


def load_choices(file: Path) -> tuple[ChosenForm, ...]:
    """Read what `save_choices` wrote: nothing, if it never did."""
    try:
        return _CHOICES.validate_json(file.read_bytes())
    except FileNotFoundError:
        return ()
    except ValidationError:
        return ()  # of a release that wrote other forms: they are measured anew


def save_choices(file: Path, choices: tuple[ChosenForm, ...]) -> None:
    """Write all choices of a search, wholly or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, _CHOICES.dump_json(choices, indent=2).decode() + "\n")


def processor() -> str:
    """Name the processor, as far as the system knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
