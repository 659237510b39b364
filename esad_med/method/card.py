"""The model card written beside a detector's weights."""

from esad_med.method.contract import Contract

_EXAMPLES = (
    "## Training pictures inside\n\n`examples.safetensors` holds {} normal training samples, as"
    " pictures without names, to be shown beside what is flagged. Who has this folder has these"
    " pictures; delete the file before you hand the detector to others, it works without."
)


def model_card(contract: Contract, *, digest: str, examples: int = 0) -> str:
    """The card of a detector as Markdown: what it is for, was made of, and was measured at."""
    sections = [
        "# ESAD detector",
        "Semi-supervised anomaly detection after ESAD (Huang et al., arXiv:2012.04905): it ranks"
        " samples by how little they look like the normal samples it was trained on. A higher"
        " score is more anomalous.",
        "## Intended use\n\nResearch. Not a medical device, not for diagnosis. A score says where"
        " to look first; it is no probability of disease.",
        "## Input\n\n" + _table(_input_rows(contract)),
        "## Training\n\n" + _table(_training_rows(contract)),
        "## Score\n\n" + _score_text(contract),
        "## Known limits\n\nOther scanners, stains, views, organs or patients than in training are"
        " outside what was measured. Percentiles speak of normals like those held out. Samples of"
        " one patient are not independent.",
        *([_EXAMPLES.format(examples)] if examples else []),
        f"Identity (SHA-256 of contract and weights): `{digest}`",
    ]
    return "\n\n".join(sections) + "\n"


def _table(rows: list[tuple[str, object]]) -> str:
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)


def _input_rows(contract: Contract) -> list[tuple[str, object]]:
    own = contract.input
    return [
        ("modality", own.modality),
        ("shape", " x ".join(map(str, own.sample_shape))),
        ("values", f"{own.dtype}, {own.value_range[0]:g} to {own.value_range[1]:g}"),
        *([("embeddings of encoder", own.encoder)] if own.encoder else []),
        *_preparation_rows(contract),
    ]


def _preparation_rows(contract: Contract) -> list[tuple[str, object]]:
    """What was done to slides, or to radiographs, before."""
    own = contract.input
    if own.view_positions is not None:
        part = f"central {100 * (own.crop_share or 1):g} % of each side"
        return [("views", ", ".join(own.view_positions)), ("part seen", part)]
    target = (own.stain_target or {}).get("name", "none")
    return [
        ("resolution", f"{own.mpp:g} µm per pixel ± 5 %" if own.mpp else "does not apply"),
        ("stain normalization", f"{own.stain or 'none'}, target: {target}"),
    ]


def _training_rows(contract: Contract) -> list[tuple[str, object]]:
    training = contract.training
    return [
        ("preset", training.preset),
        ("seed", training.seed),
        ("members", contract.members),
        ("normal or unlabeled samples", training.normals),
        ("labeled outliers", training.outliers),
        ("data (SHA-256)", f"`{training.data_digest}`"),
        ("versions", ", ".join(f"{k} {v}" for k, v in training.versions.items())),
    ]


def _score_text(contract: Contract) -> str:
    fusion, calibration = contract.fusion, contract.calibration
    how = "learned from held-out labeled outliers" if fusion.learned else "fixed"
    unit = "as in Eq. 17" if fusion.mode == "sum" else "in standard deviations of held-out normals"
    auc = "not measured (no labeled outliers were held out)"
    if calibration.auc is not None:
        auc = (
            f"{100 * calibration.auc:.1f} %, mean over single members ({calibration.outliers}"
            " labeled outliers; weights and stopping may have been chosen on the same samples)"
        )
    latent = contract.network.distance
    norm = "norm" if latent == "none" else f"norm (the Mahalanobis distance of {latent})"
    return (
        f"score = {fusion.reconstruction_weight:.4g} x reconstruction + {fusion.norm_weight:.4g} x"
        f" {norm}, both {unit}; the weights are {how}.\n\nPercentiles are among"
        f" {calibration.normals} normals held out by {calibration.held_out_by}.\n\nAUC on held-out"
        f" training data: {auc}"
    )
