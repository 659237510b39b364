"""The settings of a training, and the presets `paper` and `recommended`."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from esad_med.base.config import Spec
from esad_med.method.fusion import FusionConfig
from esad_med.method.losses import LossSpec
from esad_med.method.networks import Activation, Distance, Normalization, Pooling
from esad_med.method.scaling import ScaleConfig
from esad_med.method.transforms import AugmentSpec, WrongTargetSpec

PresetName = Literal["paper", "recommended"]
Kind = Literal["image", "upright", "vector"]


class NetworkConfig(Spec):
    """The network; its channels or features come from the data."""

    width: float = Field(0.125, gt=0, le=4, description="Factor on the channels of Table 6.")
    skip: bool = Field(False, description="Skip connections; pictures only.")
    hidden: tuple[int, ...] | None = Field(
        None, min_length=1, description="Layers for vectors; null sizes them by the columns."
    )
    normalization: Normalization = Field("batch", description="batch or none.")
    latent_activation: Activation | None = Field(
        None,
        description="After the encoders' last layer; by default relu for pictures (Table 6),"
        " linear for vectors.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Before the encoders' last block.")
    pooling: Pooling = Field("max", description="max or mean of 2x2 pixels; pictures only.")
    whiten: bool = Field(False, description="Decorrelate what the encoders see; pictures only.")
    second_encoder: bool = Field(True, description="Without it z_hat is z (Table 5).")
    distance: Distance = Field(
        "none",
        description="Score the norm of z or z_hat in standard deviations of the training normals"
        " (Mahalanobis distance); none is ‖z_hat‖ itself (Eq. 17).",
    )


class DataConfig(Spec):
    """Which samples are trained on, and how they are put into batches."""

    labeled_ratio: float | None = Field(
        None, ge=0, lt=1, description="γl = M / (unlabeled + M); None takes what is labeled."
    )
    labeled_count: int | None = Field(None, ge=0, description="M itself, instead of γl.")
    pollution: float = Field(0.0, ge=0, lt=1, description="γp: anomalous share of the unlabeled.")
    class_column: str | None = Field(None, description="Column of samples.csv that names classes.")
    labeled_classes: int | tuple[str, ...] | None = Field(
        None, description="k_l: how many classes labeled outliers come from, or which."
    )
    batch_size: int = Field(32, ge=2, description="Samples; with balanced batches the normals.")
    outliers_per_batch: int = Field(
        8, ge=0, description="Labeled outliers beside them, with replacement; 0 draws all alike."
    )
    turned_per_batch: int = Field(
        0,
        ge=0,
        description="Normals beside them that are turned by 90, 180 or 270 degrees and count as"
        " labeled outliers: where pictures have an up, none is normal upside down.",
    )
    validation: float = Field(
        0.2, gt=0, le=0.5, description="Share that each member holds out, by patient or case."
    )

    @model_validator(mode="after")
    def _one_amount(self) -> "DataConfig":
        if self.labeled_ratio is not None and self.labeled_count is not None:
            raise ValueError("labeled_ratio and labeled_count exclude each other")
        if self.labeled_classes is not None and self.class_column is None:
            raise ValueError("labeled_classes needs class_column")
        if self.turned_per_batch and not self.outliers_per_batch:
            raise ValueError("turned_per_batch needs balanced batches, outliers_per_batch above 0")
        return self


class OptimizerConfig(Spec):
    """The optimizer and its learning rate."""

    name: Literal["sgd", "adam", "adamw"] = "adam"
    lr: float = Field(1e-3, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1, description="Of SGD.")
    weight_decay: float = Field(0.0, ge=0, description="On weights, not on biases and norms.")
    schedule: Literal["constant", "halve", "cosine", "onecycle"] = "constant"
    halve_every: int = Field(50, ge=1, description="Epochs, for schedule halve.")
    warmup: int = Field(0, ge=0, description="Steps in which the rate rises linearly.")
    clip: float | None = Field(1.0, gt=0, description="Largest gradient norm, or null.")


# Section B of the supplement and docs/method.md. Ours, as guards, are: the mean in Eqs. 9, 15 and
# 17 (the sum diverges), eps in Eq. 14, and clipping (without it the l2 norm collapsed). Nothing is
# learned from held-out outliers, so none is held out; of the normals few, for the percentiles.
_PAPER: dict[str, Any] = {
    "network": {"width": 1.0},
    "data": {"batch_size": 32, "outliers_per_batch": 0, "validation": 0.05},
    "loss": {"lambda1": 1.0, "lambda2": 1.0, "norm": "l2"},
    "optimizer": {"name": "sgd", "lr": 0.1, "schedule": "halve", "halve_every": 50},
    "augment": {"flips": False, "rotations": False},
    "fusion": {"mode": "sum", "learn_weight": False},
    "epochs": 200,
    "ema": 0.0,
    "members": 1,
    "test_time_augmentation": 1,
}

#: What a preset changes of the defaults above, for pictures and for vectors.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "recommended": {
        # Chosen on the development half of PCam (docs/results.md). The logarithm is Eq. 11's:
        # entropy goes with log σ; it has no plateau at ‖z_hat‖ = 1, on which runs with the inverse
        # norm stay. A linear last layer keeps z_hat from dying to exact zeros; skip connections let
        # the second encoder see more than a blurred tile; few epochs, because few outliers are soon
        # learned by heart, the more so without random shifts. Hue tells tumor from lymphocytes:
        # whitening and mean pooling keep it. Few labels are worth more in training than held out.
        # Norms of a trained member lie near zero or far out, so members are averaged in logs.
        "image": {
            "network": {
                "skip": True,
                "latent_activation": "linear",
                "pooling": "mean",
                "whiten": True,
            },
            "data": {"validation": 0.1},
            "loss": {"averaging": "groups", "push": "log", "eps": 0.1},
            "optimizer": {"schedule": "cosine", "warmup": 10},
            "augment": {"shift": 0.125},
            "fusion": {"transform": "log"},
            "epochs": 20,
            "test_time_augmentation": 1,
        },
        # Chosen on training images of MNIST, Fashion-MNIST and CIFAR-10 (docs/results.md). A normal
        # picture upside down is no normal picture: without turned ones the norm knows no outliers
        # but those of the labeled class, or none at all. z_hat tells the known ones from all else;
        # z keeps more of what is unknown.
        "upright": {
            "network": {"latent_activation": "linear", "distance": "z"},
            "data": {"validation": 0.1, "turned_per_batch": 8},
            "loss": {"averaging": "groups", "push": "log", "eps": 0.1},
            "optimizer": {"schedule": "cosine", "warmup": 10},
            "augment": {"flips": False, "rotations": False, "noise": 0.3},
            "fusion": {"transform": "log"},
            "epochs": 20,
            "test_time_augmentation": 1,
        },
        # Chosen on ODDS tables split by seeds 100 and up (docs/results.md). Clipping keeps one wild
        # column from deciding, normal scores keep what it loses of long tails; noise on the input
        # is what keeps few outliers from being learned by heart; steps, not epochs, are what small
        # and large tables have in common; with fewer than ten outliers the norm knows little of
        # other kinds, so both terms count alike, and two dozen still judge the terms by chance.
        "vector": {
            "network": {"distance": "z_hat"},
            "scale": {"method": "normal_scores"},
            "data": {"validation": 0.1, "batch_size": 128, "outliers_per_batch": 16},
            "loss": {"averaging": "groups", "lambda1": 0.3},
            "target": {"draw": "fixed"},
            "augment": {"noise": 0.5},
            "fusion": {"norm_weight": 0.5, "shrinkage": 30.0},
            "epochs": 100,
            "least_steps": 400,
            "most_steps": 3200,
            "members": 10,
            "test_time_augmentation": 1,
        },
    },
    "paper": {
        "image": _PAPER,
        "upright": _PAPER,
        "vector": {**_PAPER, "scale": {"clip": None}},
    },
}


_STEPS = ("least_steps", "most_steps")


class TrainConfig(Spec):
    """Everything a training depends on besides its data."""

    preset: PresetName = Field("recommended", description="What the other settings start from.")
    kind: Kind = Field(
        "image",
        description="What is trained on, a preset has a form for each: pictures without an up as"
        " tissue has none, upright pictures as photographs are, or vectors.",
    )
    network: NetworkConfig = NetworkConfig()
    scale: ScaleConfig = ScaleConfig()
    data: DataConfig = DataConfig()
    loss: LossSpec = LossSpec()
    target: WrongTargetSpec = WrongTargetSpec()
    augment: AugmentSpec = AugmentSpec()
    optimizer: OptimizerConfig = OptimizerConfig()
    fusion: FusionConfig = FusionConfig()
    epochs: int = Field(60, ge=1, description="Passes over the normals; where given, exactly so.")
    least_steps: int = Field(
        0, ge=0, description="More epochs where these would take fewer steps: for few normals."
    )
    most_steps: int | None = Field(
        None, ge=1, description="Fewer epochs where these would take more steps; at least one."
    )
    patience: int | None = Field(
        None, ge=1, description="Epochs without a better validation value before stopping."
    )
    select: Literal["last", "best"] = Field(
        "last", description="Weights of the last epoch, or of the best validation value."
    )
    ema: float = Field(
        0.99, ge=0, lt=1, description="Decay of the running mean of weights that is kept; 0: off."
    )
    members: int = Field(5, ge=1, description="Networks in the ensemble.")
    folds: Literal["cross", "all"] = Field(
        "cross",
        description="Labeled outliers are held out in turn, or by all members the same ones.",
    )
    test_time_augmentation: Literal[1, 2, 4, 8] = Field(
        8, description="Views (turned, mirrored) that a score is the mean of; 1 for vectors."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of training; auto is bfloat16 for pictures where the hardware has it."
    )
    keep_examples: int = Field(
        0,
        ge=0,
        le=2048,
        description="Normal training pictures kept in the detector, to be shown beside what is"
        " flagged; 0: none, since they are pictures of patients.",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = Field(0, ge=0, lt=2**31)

    def planned_epochs(self, steps_per_epoch: int) -> int:
        """The epochs, or what the least and the most number of steps make of them."""
        epochs = max(self.epochs, -(-self.least_steps // steps_per_epoch))
        return (
            epochs
            if self.most_steps is None
            else max(1, min(epochs, self.most_steps // steps_per_epoch))
        )

    @model_validator(mode="after")
    def _without_contradiction(self) -> "TrainConfig":
        if self.most_steps is not None and self.least_steps > self.most_steps:
            raise ValueError("least_steps is above most_steps")
        if self.keep_examples and self.kind == "vector":
            raise ValueError("keep_examples: vectors are no pictures to show; set it to 0")
        if self.data.turned_per_batch:
            if self.kind == "vector":
                raise ValueError("data.turned_per_batch: vectors cannot be turned; set it to 0")
            if self.augment.rotations or self.test_time_augmentation > 1:
                raise ValueError(
                    "data.turned_per_batch makes turned normals outliers, augment.rotations and"
                    " test_time_augmentation take them for normal; set kind=upright,"
                    " augment.rotations=false and test_time_augmentation=1"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        name, kind = values.get("preset", "recommended"), values.get("kind", "image")
        known = isinstance(name, str) and isinstance(kind, str)
        start = PRESETS.get(name, {}).get(kind, {}) if known else {}
        if "epochs" in values:  # the user's epochs are not to be stretched or cut by the preset
            start = {key: value for key, value in start.items() if key not in _STEPS}
        return _merge(start, values)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The base with all changes, groups of settings merged key by key."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return merged
