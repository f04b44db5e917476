"""What a search is: model, data, budget, compute, space, sampler and seed, as one frozen value."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from models.cost import (
    Quantity,
)
from models.frozen import Spec
from models.spec import (
    Gpt,
    ImageTask,
    Matrix,
    Model,
    Task,
    TextTask,
)
from models.structures.sizes import KINDS, Kind
from search.recipe import Compute, Training
from search.rules import (
    Fraction,
    Layers,
)
from search.sampler import GRID_LIMIT, Limits, Sampler

ImageDataset = Literal["digits", "mnist-5k", "fashion-mnist"]
Dataset = Literal[ImageDataset, "state-of-the-union"]
# A network for text says itself how many characters it sees: the context here is only the default.
DATASET_TASKS: dict[Dataset, ImageTask | TextTask] = {
    "digits": ImageTask(channels=1, height=8, width=8, classes=10),
    "mnist-5k": ImageTask(channels=1, height=28, width=28, classes=10),
    "fashion-mnist": ImageTask(channels=1, height=28, width=28, classes=10),
    "state-of-the-union": TextTask(vocabulary=96, context=Gpt().context),
}

BuiltBaseline = Literal[
    "dense_shrunk",
    "uniform_svd",
    "uniform_low_rank",
    "allocated_low_rank",
    "block_diagonal",
    "monarch",
    "btt",
    "blast",
    "tensor_train",
    "allocated_structures",
]
# The last one's structure is found in training.
BaselineName = Literal[BuiltBaseline, "learned_low_rank"]
MetricName = Literal["curvature", "gradient", "uniform"]
StartName = Literal["answer", "output", "uniform", "scratch"]
StructuresName = Literal["auto", "rectangles", "competing", "menu"]
Objective = Literal["validation_loss", "cost", "latency"]
SearchId = Annotated[str, Field(pattern=r"^srch_[0-9a-f]{32}$")]
Tag = Annotated[str, Field(min_length=1, max_length=60)]


class SpecError(ValueError):
    """A spec that can never work: the field to change, and a sentence that says how."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(f"{field}: {sentence}")
        self.field = field
        self.sentence = sentence


class BudgetUnreachable(SpecError):
    """A budget below the cheapest network the space admits."""


class Budget(Spec):
    """What the eligible layers may cost, as a share of their dense cost or as a number.

    In `latency` that is the time they take on the device of the search, as measured beside the
    dense layers before anything is trained; layers that run dense count as such.
    `ratios` are several budgets of one search, which share its reference and profile: each has its
    own baselines, candidates (as many as `compute.trials` says) and repeats.
    """

    quantity: Quantity = "macs"
    ratio: Fraction | None = None
    ratios: Annotated[tuple[Fraction, ...], Field(min_length=2, max_length=8)] | None = None
    absolute: PositiveInt | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [one for one in (self.ratio, self.ratios, self.absolute) if one is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of ratio, ratios and absolute")
        if self.absolute is not None and self.quantity == "latency":
            raise ValueError("absolute counts macs or parameters; of the latency give a ratio")
        if self.ratios and len(set(self.ratios)) < len(self.ratios):
            raise ValueError("ratios names a share twice")
        return self

    def costs(self, dense: int) -> tuple[int, ...]:
        """Return what each budget comes to where the eligible layers cost `dense`."""
        if self.absolute is not None:
            return (self.absolute,)
        # A number that the ratio means exactly may come out a little below itself.
        return tuple(int(ratio * dense + 1e-6) for ratio in self.ratios or (self.ratio or 0.0,))


class Range(Spec):
    """The interval a number is drawn from."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.high:
            raise ValueError(f"low is {self.low}, but must not exceed high, {self.high}")
        return self


class LearnerSettings(Spec):
    """What gradient descent cannot learn: the hyper-parameters of one candidate.

    `structures` is what a layer may become: `rectangles` alone; `competing`, with an alternative
    beside them where the allocation finds that it pays; `menu`, the structure that is best before
    training and stays. `auto` is rectangles in a network; of a single matrix the menu, competing
    and rectangles, candidate by candidate.
    `start` is how the first low-rank terms are chosen and shared out: by what they do to the
    network's answers, to their layer's output, or to the output with the same share in every layer;
    `scratch` takes nothing from the reference but what is distilled: a network drawn anew, with the
    published rectangles, that learns at `training.learning_rate` by the maximal-update rule, and
    whose saliencies are of gradients.
    `metric` is how a piece's saliency is measured when the cost has to fall.
    sigma is in units of a mask's length; `structural_rate` multiplies the weights' learning rate;
    `start_excess` multiplies the budget; `schedule` and `learning` are shares of all steps.
    `share` is the budget's share of the dense cost where the search has several objectives, and
    draws it.
    Under a latency budget whole terms leave and rectangles are neither shortened nor moved, which
    saves no time: `pieces` is ranks, `gaudi` false; `auto` is the menu for the first candidate, and
    rectangles for the others.
    """

    structures: StructuresName = "auto"
    start: StartName = "answer"
    start_excess: Annotated[float, Field(ge=1)] = 1.2
    group: PositiveInt = 1
    sigma_start: PositiveFloat = 0.1
    sigma_end: PositiveFloat = 1.0
    shrink: NonNegativeFloat = 0.05
    structural_rate: NonNegativeFloat = 1.0
    schedule: Fraction = 0.25
    learning: Fraction = 0.5
    pieces: Literal["ranks", "rectangles"] = "rectangles"
    metric: MetricName = "curvature"
    gaudi: bool = True
    share: Fraction | None = None

    @model_validator(mode="after")
    def _alternatives_can_be_chosen(self) -> Self:
        if self.structures in ("competing", "menu"):
            if self.start not in ("answer", "output"):
                raise ValueError(
                    f"structures is {self.structures}, which chooses by what answers or outputs "
                    f"miss; start is {self.start}, but must be answer or output"
                )
            if self.metric == "uniform":
                raise ValueError(
                    f"structures is {self.structures}, but the uniform metric shortens rectangles "
                    "only; choose curvature or gradient"
                )
        return self


class Space(Spec):
    """What the candidates are drawn from, and the plain families they must beat.

    `learner` is the first candidate, and what the others keep where nothing is drawn.
    `structures` are the kinds on every layer's menu, beside dense: what the allocation may choose.
    """

    baselines: Annotated[tuple[BaselineName, ...], Field(max_length=11)] = (
        "dense_shrunk",
        "uniform_low_rank",
        "allocated_low_rank",
        "learned_low_rank",
        "block_diagonal",
    )
    starts: Annotated[tuple[StartName, ...], Field(min_length=1, max_length=4)] = ("answer",)
    groups: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=100)] = (1, 2, 4)
    start_excess: Range = Range(low=1.05, high=1.3)
    sigma_start: Range = Range(low=0.02, high=0.3)
    sigma_end: Range = Range(low=0.5, high=2.0)
    shrink: Range = Range(low=0.01, high=0.5)
    structural_rate: Range = Range(low=0.1, high=10.0)
    learner: LearnerSettings = LearnerSettings()
    structures: Annotated[tuple[Kind, ...], Field(min_length=1, max_length=len(KINDS))] = (
        "low rank",
        "block diagonal",
        "block low rank, 4 x 4",
        "BTT, 4 x 4",
        "BTT, 8 x 8",
        "Monarch, rank 1",
    )

    @model_validator(mode="after")
    def _no_structure_twice(self) -> Self:
        if len(set(self.structures)) < len(self.structures):
            raise ValueError("structures names a kind twice")
        return self

    @model_validator(mode="after")
    def _no_family_twice(self) -> Self:
        if len(set(self.baselines)) < len(self.baselines):
            raise ValueError("baselines names a family twice")
        return self

    @model_validator(mode="after")
    def _ranges_are_admissible(self) -> Self:
        for name, interval in self.ranges.items():
            try:
                LearnerSettings.model_validate({name: interval.low})
            except ValidationError as error:
                rule = error.errors()[0]["msg"].removeprefix("Input should be ")
                raise ValueError(f"{name} begins at {interval.low}, but must be {rule}") from error
        return self

    @property
    def ranges(self) -> dict[str, Range]:
        """The numbers that are drawn, each from its interval."""
        return {
            "start_excess": self.start_excess,
            "sigma_start": self.sigma_start,
            "sigma_end": self.sigma_end,
            "shrink": self.shrink,
            "structural_rate": self.structural_rate,
        }


class SearchSpec(Spec):
    """One search. The same spec and seed give the same structures on the same machine.

    With several `objectives` each candidate's budget is drawn between the lowest and the highest of
    `budget.ratios`, the sampler looks for the whole front, and nothing is pruned.
    `warm_start` is the id of a search that has ended: its complete candidates are told to the
    sampler before any of this one's own.
    Of the searches of one service, those with more `priority` go first.
    """

    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    tags: Annotated[tuple[Tag, ...], Field(max_length=50)] = ()
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    model: Model
    dataset: Dataset | None = None
    budget: Budget
    compute: Compute = Compute()
    training: Training = Training()
    space: Space = Space()
    sampler: Sampler = Sampler()
    limits: Limits = Limits()
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1, max_length=3)] = (
        "validation_loss",
    )
    warm_start: SearchId | None = None
    layers: Layers = Layers()
    repeats: Annotated[int, Field(gt=0, le=100)] = 1
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0

    @model_validator(mode="after")
    def _data_fit_the_model(self) -> Self:
        if isinstance(self.model, Matrix):
            if self.dataset is not None:
                raise ValueError("dataset must be left out for a matrix, which is its own data")
            return self
        reads = isinstance(self.model, Gpt)
        choices = [name for name, t in DATASET_TASKS.items() if isinstance(t, TextTask) == reads]
        if self.dataset not in choices:
            found = "missing" if self.dataset is None else self.dataset
            what = f"choose one of {', '.join(choices)}"
            raise ValueError(f"dataset is {found}; for a {self.model.kind} network {what}")
        return self

    @model_validator(mode="after")
    def _objectives_can_be_weighed(self) -> Self:
        if "validation_loss" not in self.objectives:
            raise ValueError("objectives must name validation_loss: the rest is best at rank 1")
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives names one twice")
        if not self.draws_budget:
            if self.space.learner.share is not None:
                raise ValueError(
                    "space.learner.share is drawn for several objectives; leave it out"
                )
        elif self.budget.ratios is None:
            raise ValueError(
                "budget needs ratios for several objectives: it is drawn between the lowest and "
                "the highest"
            )
        elif self.sampler.name == "grid":
            raise ValueError("sampler grid draws no budget; take tpe, gp, nsga2 or random")
        elif self.warm_start is not None:
            raise ValueError("warm_start is for searches with one objective; leave it out")
        return self

    @property
    def drawn(self) -> dict[str, Range]:
        """The numbers that a candidate's settings are drawn from, but for its budget.

        Without rectangles that move the others have no effect.
        """
        ranges = self.space.ranges
        if self.budget.quantity == "latency":
            return {"start_excess": ranges["start_excess"]}
        return ranges

    @property
    def draws_budget(self) -> bool:
        """Whether every candidate has a budget of its own."""
        return len(self.objectives) > 1

    @property
    def shares(self) -> Range:
        """Between which shares of the dense cost a candidate's budget is drawn."""
        ratios = self.budget.ratios or (self.budget.ratio or 1.0,)
        return Range(low=min(ratios), high=max(ratios))

    @model_validator(mode="after")
    def _grid_can_be_listed(self) -> Self:
        if self.sampler.name == "grid":
            values = self.sampler.grid_values
            points = len(self.space.starts) * len(self.space.groups)
            for interval in self.drawn.values():
                points *= 1 if interval.low == interval.high else values
            if points > GRID_LIMIT:
                raise ValueError(
                    f"sampler asks for a grid of {points:,} points, but it may have "
                    f"{GRID_LIMIT:,}; take fewer values, or ranges with low equal to high"
                )
        return self


def dataset_task(dataset: Dataset, model: Model) -> Task:
    """Return what a data set asks of a network: of text, as much at once as the network sees."""
    task = DATASET_TASKS[dataset]
    if isinstance(task, TextTask) and isinstance(model, Gpt):
        return TextTask(vocabulary=task.vocabulary, context=model.context)
    return task
