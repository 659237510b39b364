"""The trained artefact: weights, input contract, calibration; score, save, load, refuse.

DETECTOR/weights.safetensors   the weights of all members, float32
DETECTOR/contract.json         what it may be fed, how terms become scores, how it was trained
DETECTOR/README.md             the model card
DETECTOR/examples.safetensors  normal training samples to show, where they were asked for
DETECTOR/checksums.json        SHA-256 of them, checked at load
DETECTOR/decisions.json        of `esad-med calibrate`: operating points, with their own SHA-256
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from esad_med.base.config import build_spec
from esad_med.base.errors import ConfigError, ModelError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.limits import Limits, read_file
from esad_med.base.runs import (
    atomic_file,
    digest_bytes,
    digest_file,
    ensure_folder,
    read_json,
    write_json,
    write_text,
)
from esad_med.base.store import SampleStore
from esad_med.method.card import model_card
from esad_med.method.contract import FORMAT, Contract, InputContract, check_input
from esad_med.method.decisions import DECISIONS, Decisions, load_decisions
from esad_med.method.devices import choose_device
from esad_med.method.encoder_identity import EncoderIdentity, check_encoder
from esad_med.method.examples import EXAMPLES, Examples, read_examples
from esad_med.method.memory import BatchesThatFit
from esad_med.method.scores import Scores, join_scores
from esad_med.method.scoring_networks import Precision, ScoringNetworks, network_terms
from esad_med.method.terms import residual_map
from esad_med.method.transforms import InputTransform

Batches = npt.NDArray[Any] | Iterable[npt.NDArray[Any]]
_BATCH = 256
_MOST_MOVED = 5.0  # percentiles, mean of a batch: by int8 against float32
_CPU_PIXELS = 32 * 64 * 64  # in a batch on a CPU: 1.3 to 1.8 times faster than 256 tiles of 64 x 64
WEIGHTS, CONTRACT, CHECKSUMS = "weights.safetensors", "contract.json", "checksums.json"
_CARD = "README.md"


class MemberTerms(NamedTuple):
    """The two terms of Eq. 17 for n samples by each of m members, (m, n) float32."""

    reconstruction: npt.NDArray[np.float32]
    norm: npt.NDArray[np.float32]


class Detector:
    """A trained ESAD model: one network or an ensemble of them.

    Attributes:
        contract: what it may be fed and how its scores come about.
        weights: ``member0.encoder1...`` -> tensor.
        decisions: operating points and what they rest on; None before it is calibrated.
        examples: normal training samples to show beside what is flagged, or None.
    """

    def __init__(
        self,
        contract: Contract,
        weights: Mapping[str, Tensor],
        *,
        decisions: Decisions | None = None,
        examples: Examples | None = None,
        device: str = "auto",
    ) -> None:
        """Put a contract, its weights and decisions together.

        Raises:
            ModelError: the weights do not fit the network of the contract, or the decisions were
                made for another detector.
        """
        self.contract = contract
        self.weights = dict(weights)
        self.decisions = decisions
        self.examples = examples
        self.device = choose_device(device)
        self._transform = InputTransform(
            value_range=contract.input.value_range,
            image=contract.input.is_image,
            scaling=contract.scaling,
        )
        self._networks = ScoringNetworks(
            contract.network, self.weights, members=contract.members, device=self.device
        )
        self._compared = False  # int8 with float32
        self._loaded_from: tuple[Path, str] | None = None
        self._fitting = BatchesThatFit()
        if decisions is not None and decisions.detector != self.score_digest:
            raise ModelError(
                f"the decisions were calibrated for detector {decisions.detector[:12]}, this one is"
                f" {self.score_digest[:12]}; calibrate it with `esad-med calibrate`"
            )

    @property
    def digest(self) -> str:
        """SHA-256 over contract, weights and decisions: the identity of this detector."""
        if self.decisions is None:
            return self.score_digest
        return digest_bytes(self.score_digest.encode(), self.decisions.digest.encode())

    @property
    def score_digest(self) -> str:
        """SHA-256 over contract and weights: what its scores hang on, calibrated or not."""
        # without defaults: a setting that a later version adds changes no detector's identity
        said = self.contract.model_dump_json(exclude_defaults=True).encode()
        return digest_bytes(said, tensors_to_bytes(self.weights))

    @property
    def input(self) -> InputContract:
        """The samples it was trained on."""
        return self.contract.input

    def score(
        self,
        batches: Batches,
        *,
        batch_size: int | None = None,
        precision: Precision = "float32",
        progress: Callable[[int], None] | None = None,
    ) -> Scores:
        """Score samples, in order (Eq. 17 and its terms).

        In float32 the scores do not depend on batch size or order beyond 1e-5, or 1e-4 where a
        distance is scored.

        Args:
            batches: one array (n, h, w, c) or (n, d), or an iterable of them.
            batch_size: how many samples go through the network at a time; by default 256, on a CPU
                so few pictures that what passes between two layers stays near its caches.
            precision: bfloat16 and int8 are faster where the hardware has them, and less exact (a
                distance, `network.distance`, would drown in their rounding: asked for bfloat16 it
                is scored in float32); float64 gives the same scores in any batch to the last digit.
            progress: called with the number of samples scored so far.

        Raises:
            ConfigError: see `check_precision`; or int8 moves the scores of the first batch by more
                than five percentiles; or the device's memory does not even hold one sample.
            ModelError: samples of another shape, type or value range than trained on.
        """
        parts, done = [], 0
        for samples in _chunks(batches, batch_size or self._batch_size()):
            raise_if_interrupted()
            if precision == "int8":
                self._compare_int8(samples)
            terms = self.terms(samples, precision=precision)
            parts.append(self.contract.fusion.fuse(terms.reconstruction, terms.norm))
            done += len(samples)
            if progress:
                progress(done)
        return join_scores(parts)

    def terms(self, samples: npt.NDArray[Any], *, precision: Precision = "float32") -> MemberTerms:
        """Both terms of one batch of samples by each member, before they are fused.

        Where the device's memory does not hold the batch it goes in halves.

        Raises:
            ConfigError: the device does not even hold one sample.
            ModelError: samples outside the contract.
        """
        self.check_samples(samples)
        if precision == "bfloat16" and self.contract.network.distance != "none":
            precision = "float32"
        parts = self._fitting.each(partial(self._terms, precision=precision), samples)
        return MemberTerms(*(np.concatenate(term, axis=1) for term in zip(*parts, strict=True)))

    def _terms(self, samples: npt.NDArray[Any], precision: Precision) -> MemberTerms:
        spec, networks = self.contract.terms, self._networks.of(precision)
        with torch.inference_mode(), _exactly(self.device):
            x = self._input(samples)
            x = x.double() if precision == "float64" else x
            found = [
                network_terms(network, x, spec=spec, views=self.contract.views)
                for network in networks
            ]
        first, second = (torch.stack(t).cpu().numpy() for t in zip(*found, strict=True))
        return MemberTerms(first, second)

    def examine(self, samples: npt.NDArray[Any]) -> tuple[Scores, npt.NDArray[np.float32]]:
        """Scores and residual maps of pictures, by one pass through the networks.

        Args:
            samples: one batch of pictures (n, h, w, c).

        Returns:
            The scores of `score`, and the maps of `residual_map`.

        Raises:
            ConfigError: the device does not even hold one sample.
            ModelError: a detector of vectors, or samples outside the contract.
        """
        if not self.input.is_image:
            raise ModelError("this detector was trained on vectors; there is no residual map")
        self.check_samples(samples)
        scores, maps = zip(*self._fitting.each(self._examine, samples), strict=True)
        return join_scores(scores), np.concatenate(maps)

    def _examine(self, samples: npt.NDArray[Any]) -> tuple[Scores, npt.NDArray[np.float32]]:
        spec, views = self.contract.terms, self.contract.views
        found, maps = [], []
        with torch.inference_mode(), _exactly(self.device):
            x = self._input(samples)
            for network in self._networks.of("float32"):
                output = network(x)
                found.append(network_terms(network, x, spec=spec, views=views, upright=output))
                maps.append(residual_map(output.x_hat, x))
        first, second = (torch.stack(t).cpu().numpy() for t in zip(*found, strict=True))
        height, width, _ = self.input.sample_shape
        top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
        whole: npt.NDArray[np.float32] = torch.stack(maps).mean(0).cpu().numpy()
        inner = whole[:, top : top + height, left : left + width]
        return self.contract.fusion.fuse(first, second), inner

    def residual_map(self, samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Squared residual of each pixel, mean over members and channels, (n, h, w).

        Args:
            samples: one batch of pictures (n, h, w, c).

        Raises:
            ModelError: a detector of vectors, or samples outside the contract.
        """
        return self.examine(samples)[1]

    def latents(
        self, samples: npt.NDArray[Any], *, batch_size: int = 256
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Both latents of the first member, z and z_hat (Eqs. 8 and 13), flattened, each (n, d).

        Args:
            samples: (n, h, w, c) or (n, d).
            batch_size: how many samples go through the network at a time.

        Raises:
            ModelError: samples outside the contract.
        """
        self.check_samples(samples)
        first, second = [], []
        network = self._networks.of("float32")[0]
        with torch.inference_mode(), _exactly(self.device):
            for start in range(0, max(1, len(samples)), batch_size):  # no samples: no latents
                raise_if_interrupted()
                output = network(self._input(samples[start : start + batch_size]))
                first.append(output.z.flatten(1))
                second.append(output.z_hat.flatten(1))
        return torch.cat(first).cpu().numpy(), torch.cat(second).cpu().numpy()

    def embed(self, samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """A short vector per sample that tells likeness, (n, c).

        The first member's z, mean over positions: what is there, not where.

        Raises:
            ModelError: samples outside the contract.
        """
        self.check_samples(samples)
        found, network = [], self._networks.of("float32")[0]
        with torch.inference_mode(), _exactly(self.device):
            for chunk in _chunks(samples, self._batch_size()):
                raise_if_interrupted()
                found.append(network(self._input(chunk)).z.flatten(2).mean(2))
        return np.asarray(torch.cat(found).cpu().numpy())

    def percentile(self, score: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Share of the held-out normals of training that score lower, (n,) in 0 ... 100."""
        return self.contract.calibration.percentile(score)

    def threshold_at(self, percentile: float) -> float:
        """The score below which this percentage of held-out normals lies."""
        return self.contract.calibration.score_at(percentile)

    def summary(self) -> dict[str, Any]:
        """The few facts that tell detectors apart, as plain values."""
        contract = self.contract
        return {
            "digest": self.digest,
            "preset": contract.training.preset,
            "members": contract.members,
            "parameters": self._networks.parameters,
            "normals": contract.training.normals,
            "labeled outliers": contract.training.outliers,
            "held-out normals": contract.calibration.normals,
            "held out by": contract.calibration.held_out_by,
            "held-out AUC": contract.calibration.auc,
            "norm weight": contract.fusion.norm_weight,
            "norm weight learned": contract.fusion.learned,
        }

    def check_precision(self, precision: Precision) -> None:
        """Refuse a precision in which this detector cannot score on its device.

        Raises:
            ConfigError: int8 for vectors, a distance, networks without batch norm, on a GPU or on
                a CPU without 8-bit dot products.
        """
        self._networks.of(precision)

    def check_samples(self, samples: npt.NDArray[Any]) -> None:
        """Refuse a batch of another shape, type or value range than the contract's.

        Raises:
            ModelError: saying what was found and what is expected.
        """
        own = self.input
        if samples.shape[1:] != own.sample_shape or str(samples.dtype) != own.dtype:
            raise ModelError(
                f"samples are {samples.dtype} {list(samples.shape[1:])}, this detector expects"
                f" {own.dtype} {list(own.sample_shape)}; prepare them as in training"
            )
        if samples.dtype.kind == "f" and len(samples):
            low, high = float(samples.min()), float(samples.max())
            if not (own.value_range[0] - 1e-4 <= low and high <= own.value_range[1] + 1e-4):
                raise ModelError(
                    f"samples hold values from {low} to {high}, this detector expects"
                    f" {list(own.value_range)}; prepare them as in training"
                )

    def check_store(self, store: SampleStore) -> None:
        """Refuse a store whose samples differ from those this detector was trained on.

        Raises:
            ModelError: other modality, size, channels, type, value range, mpp, stain target or
                encoder.
        """
        found = InputContract.of_store(store)
        check_encoder(found.encoder, self.input.encoder, str(store.path))  # says most
        shape = found.sample_shape
        if found.dtype != self.input.dtype:
            raise ModelError(
                f"{store.path}: samples are {found.dtype}, this detector expects"
                f" {self.input.dtype}; prepare them as in training"
            )
        self.check_input(
            source=str(store.path),
            modality=found.modality,
            channels=shape[-1],
            size=(shape[1], shape[0]) if found.is_image else None,
            value_range=found.value_range,
            mpp=found.mpp,
            stain=found.stain,
            stain_target=found.stain_target,
            view_positions=found.view_positions,
            crop_share=found.crop_share,
            encoder=found.encoder,
        )

    def check_input(
        self,
        *,
        modality: str,
        channels: int,
        size: Sequence[int] | None,
        value_range: Sequence[float],
        mpp: float | None = None,
        stain: str | None = None,
        stain_target: Mapping[str, Any] | None = None,
        view_positions: Sequence[str] | None = None,
        crop_share: float | None = None,
        encoder: EncoderIdentity | None = None,
        source: str = "input",
    ) -> None:
        """Refuse input other than the contract's; see `contract.check_input`.

        Raises:
            ModelError: saying what was found and what is expected.
        """
        check_input(
            self.input,
            source=source,
            modality=modality,
            channels=channels,
            size=size,
            value_range=value_range,
            mpp=mpp,
            stain=stain,
            stain_target=stain_target,
            view_positions=view_positions,
            crop_share=crop_share,
            encoder=encoder,
        )

    def save(self, path: Path) -> None:
        """Write the detector into a folder; other files there stay.

        The checksums come last: a folder without them is not a finished detector.

        Raises:
            ConfigError: the folder cannot be written.
        """
        ensure_folder(path)
        if self.decisions is None and not _are_for(path / DECISIONS, self.score_digest):
            (path / DECISIONS).unlink(missing_ok=True)  # an earlier detector's
        (path / CHECKSUMS).unlink(missing_ok=True)
        with atomic_file(path / WEIGHTS) as temporary:
            temporary.write_bytes(tensors_to_bytes(self.weights))
        with atomic_file(path / CONTRACT) as temporary:
            temporary.write_bytes(self._contract_bytes())
        kept = 0 if self.examples is None else len(self.examples)
        card = model_card(self.contract, digest=self.score_digest, examples=kept)
        write_text(path / _CARD, card)
        names = [WEIGHTS, CONTRACT, _CARD]
        if self.examples is None:
            (path / EXAMPLES).unlink(missing_ok=True)  # pictures of another training's patients
        else:
            with atomic_file(path / EXAMPLES) as temporary:
                temporary.write_bytes(self.examples.to_bytes())
            names.append(EXAMPLES)
        write_json(path / CHECKSUMS, {name: digest_file(path / name) for name in names})
        if self.decisions is not None:
            self.decisions.save(path / DECISIONS)

    @classmethod
    def load(cls, path: Path, *, device: str = "auto", decided: bool = True) -> "Detector":
        """Read a detector folder after checking its checksums.

        Args:
            path: the folder.
            device: auto, cpu or cuda.
            decided: with its decisions, if it has any; else they are not looked at.

        Raises:
            ModelError: no detector, unfinished, damaged, or of another format.
        """
        sums = _check_files(path)
        values = read_json(path / CONTRACT, ModelError)
        if values.get("format") != FORMAT:
            raise ModelError(f"{path}: format {values.get('format')!r}, expected {FORMAT!r}")
        try:
            contract = build_spec(Contract, values, source=str(path / CONTRACT))
            weights = load_tensors(_read_weights(path / WEIGHTS))
        except (ConfigError, SafetensorError, KeyError) as error:  # a type that torch has not
            raise ModelError(f"{path}: not a usable detector ({error})") from error
        if not all(w.isfinite().all() for w in weights.values()):
            raise ModelError(f"{path}: weights that are no numbers; train the detector again")
        kept = EXAMPLES in sums and (path / EXAMPLES).exists()
        examples = read_examples(path / EXAMPLES) if kept else None
        try:
            decisions = load_decisions(path / DECISIONS) if decided else None
            detector = cls(contract, weights, decisions=decisions, examples=examples, device=device)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        detector._loaded_from = path.resolve(), device
        return detector

    def __reduce__(self) -> tuple[Callable[..., "Detector"], tuple[object, ...]]:
        """To another process goes the name of the folder it was loaded from, to be loaded there."""
        if self._loaded_from is None:
            parts = (self.contract, self.weights, self.decisions, self.examples)
            return _put_together, (*parts, str(self.device))
        return _load_again, (*self._loaded_from, self.digest)

    def _contract_bytes(self) -> bytes:
        return self.contract.model_dump_json(indent=2).encode() + b"\n"

    def _compare_int8(self, samples: npt.NDArray[Any]) -> None:
        """Score the first batch in float32 too: thresholds are only good for scores like those."""
        if self._compared or not len(samples):
            return
        exact, rounded = (
            self.percentile(self.contract.fusion.fuse(*self.terms(samples, precision=p)).score)
            for p in ("float32", "int8")
        )
        moved = float(np.abs(rounded - exact).mean())
        if moved > _MOST_MOVED:
            raise ConfigError(
                f"precision int8 moves the scores of this detector by {moved:.1f} percentiles on"
                f" average, expected at most {_MOST_MOVED:g}; score in bfloat16 or float32"
            )
        self._compared = True

    def _batch_size(self) -> int:
        if self.device.type != "cpu" or not self.input.is_image:
            return _BATCH
        height, width, _ = self.input.sample_shape
        return min(_BATCH, max(1, _CPU_PIXELS // (height * width)))

    def _input(self, samples: npt.NDArray[Any]) -> Tensor:
        copied = np.ascontiguousarray(samples)
        if not copied.flags.writeable:
            copied = copied.copy()
        return self._transform(torch.from_numpy(copied).to(self.device))


def _are_for(path: Path, digest: str) -> bool:
    """Whether decisions stand there that were made for this detector."""
    try:
        found = load_decisions(path)
    except ModelError:
        return False
    return found is not None and found.detector == digest


def _put_together(
    contract: Contract,
    weights: dict[str, Tensor],
    decisions: Decisions | None,
    examples: Examples | None,
    device: str,
) -> Detector:
    return Detector(contract, weights, decisions=decisions, examples=examples, device=device)


@lru_cache(maxsize=4)
def _load_again(path: Path, device: str, digest: str) -> Detector:
    detector = Detector.load(path, device=device)
    if detector.digest != digest:
        raise ModelError(f"{path}: was changed while it was in use; start the command again")
    return detector


def _exactly(device: torch.device) -> AbstractContextManager[object]:
    """Full float32 where it is computed in: cuDNN rounds to TF32 by itself."""
    if device.type == "cuda":
        return torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
    return nullcontext()


def _chunks(batches: Batches, size: int) -> Iterator[npt.NDArray[Any]]:
    for batch in [batches] if isinstance(batches, np.ndarray) else batches:
        for start in range(0, len(batch), size):
            yield batch[start : start + size]


def _read_weights(path: Path) -> bytes:
    most = Limits().weights_mib
    try:
        return read_file(path, most_mib=most, setting="weights_mib", error=ModelError)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _check_files(path: Path) -> dict[str, Any]:
    """The folder's checksums, all of which are right."""
    if not path.is_dir():
        raise ModelError(f"{path}: no such folder, expected a detector ({CONTRACT} inside)")
    if (path / "store.json").exists():
        raise ModelError(f"{path}: is a SampleStore, expected a detector made by `esad-med train`")
    if not (path / "checkpoints").exists() and not (path / CONTRACT).exists():
        raise ModelError(f"{path}: no {CONTRACT} inside, expected a detector made by `train`")
    if not (path / CHECKSUMS).exists():
        raise ModelError(
            f"{path}: no {CHECKSUMS}, so not a finished detector; finish it with"
            " `esad-med train --resume`, or name another folder"
        )
    sums = read_json(path / CHECKSUMS, ModelError)
    if unknown := [name for name in sums if name not in (WEIGHTS, CONTRACT, _CARD, EXAMPLES)]:
        raise ModelError(f"{path}/{CHECKSUMS}: speaks of {unknown[0]!r}, so it is damaged")
    for name in dict.fromkeys((WEIGHTS, CONTRACT, *sums)):
        if not (path / name).is_file():
            if name in (_CARD, EXAMPLES):  # a detector may travel without them
                continue
            raise ModelError(f"{path}/{name}: missing; copy the detector again, whole")
        if digest_file(path / name) != sums.get(name):
            raise ModelError(
                f"{path}/{name}: damaged (its SHA-256 is not the one in {CHECKSUMS});"
                " copy the detector again, whole"
            )
    return sums
