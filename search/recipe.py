"""How a search trains, and how much of everything it may use."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from models.frozen import Spec

Device = Literal["cpu", "cuda", "mps"]
Precision = Literal["float32", "bfloat16"]
# Every trial is a row from the first moment on, and every epoch a point of its curves.
Epochs = Annotated[int, Field(gt=0, le=100_000)]


class Compute(Spec):
    """Bounds of the whole search, and on what it runs. Epochs are of training data, for each trial.

    `precision` is of the products in training: losses, saliencies, the optimiser and all that is
    reported are in float32. With `auto` the reference measures what is faster, and all trials of
    the search do the same. `compile` generates code for the networks that are trained; with `auto`
    if that is measured to pay within the reference's training. `processes` share each batch.
    """

    trials: Annotated[int, Field(ge=0, le=10_000)] = 8
    epochs: Epochs = 8
    reference_epochs: Epochs = 20
    seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None  # a date that can be written
    parallel: Annotated[int, Field(gt=0, le=1024)] = 1
    device: Device = "cpu"
    precision: Literal[Precision, "auto"] = "float32"
    compile: bool | Literal["auto"] = False
    processes: Annotated[int, Field(gt=0, le=64)] = 1


class Training(Spec):
    """How weights are trained, everywhere in the search: AdamW under a cosine schedule.

    `learning_rate` is for networks from scratch, `tuning_rate` for those made from the reference.
    With `samples`, no more than so many training samples are learned from: of images the same ones
    in all epochs, of a text as many windows in each (without, a million characters).
    """

    batch: Annotated[int, Field(gt=0, le=65_536)] = 64
    samples: Annotated[int, Field(gt=0, le=100_000_000)] | None = None
    learning_rate: PositiveFloat = 2e-3
    tuning_rate: PositiveFloat = 5e-4
    weight_decay: NonNegativeFloat = 0.01
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.7
