"""An encoder from elsewhere: pictures become embeddings, always prepared alike.

MODEL.onnx   the network; weights may lie in files beside it
MODEL.pt2    or a program of `torch.export`, where its user trusts it
MODEL.yaml   how its input is prepared (`EncoderSpec`); goes over what the model says of it itself
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from esad_med.base.config import build_spec, load_config
from esad_med.base.errors import ConfigError, ModelError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.limits import Limits
from esad_med.base.runs import digest_bytes
from esad_med.base.text_limits import parse_json
from esad_med.method.encoder_files import ModelFiles, check_model, digest_model
from esad_med.method.encoder_identity import MOST_DIMENSIONS, EncoderIdentity, EncoderSpec
from esad_med.method.encoder_program import SUFFIX, ProgramSession

METADATA = "esad."  # before the settings of `EncoderSpec` in a model's metadata, values as JSON
_DRY_SECONDS = 300  # for one picture
_LONGEST_SETTING = 4096  # bytes, of metadata
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Encoder:
    """A network that turns pictures into embeddings, loaded and tried once.

    Attributes:
        path: its file.
        spec: the preparation, complete: with the edge that the model asks for.
        identity: what contracts keep of it.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "auto",
        limits: Limits | None = None,
        trusted: bool = False,
    ) -> None:
        """Load a model and send one picture through it.

        Args:
            path: the model.
            device: auto, cpu or cuda.
            limits: how large its files may be.
            trusted: whether a file that can run programs when it is read, may.

        Raises:
            ConfigError: the extra ``onnx`` is not installed, the sidecar is wrong, or there is no
                such device.
            ModelError: not a model that can be used: damaged, too large, of other inputs or
                outputs, with operations that ONNX Runtime has not, or with data outside its folder.
        """
        self.path, self.device, self._trusted = path.resolve(), device, trusted
        limits = limits or Limits()
        self._is_program = trusted and self.path.suffix.lower() == SUFFIX
        if self._is_program:
            self._session: Any = ProgramSession(self.path, device=device, limits=limits)
            found = ModelFiles(self._session.data, ())
        else:
            found = check_model(self.path, limits)
            self._session = _open_session(self.path, found.data, device)
        spec = _read_spec(self.path, _metadata(self._session))
        self._input = self._check_input(spec)
        self.spec = self._complete(spec)
        self._output = self._choose_output()
        model = digest_model(self.path, found)
        preparation = self.spec.preparation()
        dim = self._dry_run()
        self.identity = EncoderIdentity(
            name=self.spec.name or self.path.stem,
            dim=dim,
            digest=digest_bytes(model.encode(), json.dumps(preparation, sort_keys=True).encode()),
            model=model,
            preparation=preparation,
        )

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.identity.dim

    def __call__(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embeddings (n, d) float32 of pictures (n, h, w, c) uint8.

        Raises:
            ModelError: the model fails, or gives values that are not finite.
        """
        size = self._fixed_batch or self.spec.batch_size
        parts = []
        for start in range(0, len(pictures), size):
            raise_if_interrupted()
            parts.append(self._run(self.prepare(pictures[start : start + size])))
        if not parts:
            return np.empty((0, self.dim), np.float32)
        found = np.concatenate(parts)
        if found.shape[1] != self.dim:
            raise ModelError(f"{self.path}: embeddings of {found.shape[1]} values after {self.dim}")
        return found

    def prepare(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """The model's input of pictures (n, h, w, c) uint8: resized, scaled, its axes in order."""
        spec, channels = self.spec, self._channels
        if pictures.shape[3] != channels:  # a radiograph is gray, most encoders want color
            if pictures.shape[3] != 1:
                raise ModelError(
                    f"{self.path}: takes pictures of {channels} channel(s), found"
                    f" {pictures.shape[3]}; use another encoder"
                )
            pictures = np.repeat(pictures, channels, axis=3)
        if spec.size_px is not None and pictures.shape[1:3] != (spec.size_px, spec.size_px):
            pictures = _resize(pictures, spec.size_px, _FILTERS[spec.resize])
        kind = _TYPES[self._input.type]
        if kind is np.uint8:  # the model prepares them itself
            x: npt.NDArray[Any] = pictures
        else:
            mean, std = (np.asarray(v, np.float32) for v in (spec.mean, spec.std))
            x = (pictures.astype(np.float32) / np.float32(spec.value_scale) - mean) / std
        if spec.layout == "NCHW":
            x = x.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(x, dtype=kind)

    def __reduce__(self) -> tuple[Callable[..., "Encoder"], tuple[object, ...]]:
        """To another process goes the file's name, to be loaded there: sessions cannot be sent."""
        return _load_again, (self.path, self.device, self.identity.digest, self._trusted)

    @property
    def _fixed_batch(self) -> int | None:
        size = self._input.shape[0]
        return size if isinstance(size, int) and size > 0 else None

    @property
    def _channels(self) -> int:
        at = 1 if self.spec.layout == "NCHW" else 3
        found = self._input.shape[at]
        return found if isinstance(found, int) else len(self.spec.mean)

    def _check_input(self, spec: EncoderSpec) -> Any:
        """The one input, of pictures."""
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(one.name for one in inputs)
            raise ModelError(f"{self.path}: {len(inputs)} inputs ({names}), expected one: pictures")
        (one,) = inputs
        if one.type not in _TYPES or len(one.shape) != 4:
            raise ModelError(
                f"{self.path}: input '{one.name}' is {one.type} {one.shape}, expected pictures of"
                f" four axes, {' or '.join(_TYPES)}; export it again"
            )
        channels = one.shape[1 if spec.layout == "NCHW" else 3]
        if isinstance(channels, int) and channels not in (1, 3):
            raise ModelError(
                f"{self.path}: input '{one.name}' has {channels} channels where layout"
                f" {spec.layout} has them, expected 1 or 3; set layout in {_sidecar(self.path)}"
            )
        return one

    def _complete(self, spec: EncoderSpec) -> EncoderSpec:
        """The preparation with what the model itself says of its input."""
        height, width = self._input.shape[2:] if spec.layout == "NCHW" else self._input.shape[1:3]
        edge = height if isinstance(height, int) else width if isinstance(width, int) else None
        if isinstance(height, int) and isinstance(width, int) and height != width:
            raise ModelError(f"{self.path}: input of {width}x{height} pixels, expected a square")
        if edge is not None and spec.size_px not in (None, edge):
            raise ModelError(
                f"{self.path}: takes pictures of {edge} pixels, the settings say size_px"
                f" {spec.size_px}; leave size_px out"
            )
        if edge is not None and not 8 <= edge <= 4096:
            raise ModelError(f"{self.path}: takes pictures of {edge} pixels, expected 8 to 4096")
        at = 1 if spec.layout == "NCHW" else 3
        channels = self._input.shape[at] if isinstance(self._input.shape[at], int) else 3
        values = spec.model_dump() | {"size_px": edge or spec.size_px}
        if channels == 1 and "mean" not in spec.model_fields_set:
            values |= {"mean": (float(np.mean(spec.mean)),), "std": (float(np.mean(spec.std)),)}
        done = EncoderSpec(**values)
        if not len(done.mean) == len(done.std) == channels:
            raise ModelError(
                f"{self.path}: {channels} channel(s), but {len(done.mean)} means and"
                f" {len(done.std)} deviations; set mean and std in {_sidecar(self.path)}"
            )
        return done

    def _choose_output(self) -> str:
        names = [one.name for one in self._session.get_outputs()]
        if not names or (self.spec.output and self.spec.output not in names):
            raise ModelError(
                f"{self.path}: no output '{self.spec.output}'; found {', '.join(names)}; set output"
                f" in {_sidecar(self.path)}"
            )
        return self.spec.output or names[0]

    def _dry_run(self) -> int:
        """Length of an embedding, by one gray picture."""
        edge = self.spec.size_px or 64
        picture = np.full((1, edge, edge, self._channels), 128, np.uint8)
        found = self._run(self.prepare(picture), seconds=_DRY_SECONDS)
        if not 1 <= found.shape[1] <= MOST_DIMENSIONS:
            raise ModelError(
                f"{self.path}: embeddings of {found.shape[1]} values, expected 1 to"
                f" {MOST_DIMENSIONS}; set output or tokens in {_sidecar(self.path)}"
            )
        return int(found.shape[1])

    def _run(self, x: npt.NDArray[Any], *, seconds: float = 0) -> npt.NDArray[np.float32]:
        count, fixed = len(x), self._fixed_batch
        if fixed and count < fixed:  # fill up: the last pictures again
            x = np.concatenate([x, np.repeat(x[-1:], fixed - count, axis=0)])
        try:
            with nullcontext() if self._is_program else _run_options(seconds) as options:
                (found,) = self._session.run([self._output], {self._input.name: x}, options)
        except Exception as error:  # the runtime's own, by kind of failure; none has a common base
            raise ModelError(f"{self.path}: fails on pictures ({_first_line(error)})") from error
        return self._embedding(np.asarray(found))[:count]

    def _embedding(self, found: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(n, d) of an output (n, d), (n, tokens, d) or (n, d, h, w)."""
        if found.dtype.kind != "f" or found.ndim not in (2, 3, 4):
            raise ModelError(
                f"{self.path}: output '{self._output}' is {found.dtype} {list(found.shape)},"
                " expected real numbers (n, d), (n, tokens, d) or (n, d, h, w); set output in"
                f" {_sidecar(self.path)}"
            )
        found = found.astype(np.float32)
        if found.ndim == 4:
            found = found.mean((2, 3))
        if found.ndim == 3:
            found = self._of_tokens(found)
        if not np.isfinite(found).all():
            raise ModelError(f"{self.path}: gives values that are not finite; export it in float32")
        return np.ascontiguousarray(found)

    def _of_tokens(self, tokens: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        first, rest = tokens[:, 0], tokens[:, self.spec.first_token :]
        if self.spec.tokens == "cls":
            return first
        if not rest.shape[1]:
            raise ModelError(
                f"{self.path}: {tokens.shape[1]} token(s), none from first_token"
                f" {self.spec.first_token} on"
            )
        mean: npt.NDArray[np.float32] = rest.mean(1)
        return mean if self.spec.tokens == "mean" else np.concatenate([first, mean], axis=1)


@overload
def load_encoder(
    path: Path, *, device: str = "auto", limits: Limits | None = None, trusted: bool = False
) -> Encoder: ...


@overload
def load_encoder(
    path: Path | None, *, device: str = "auto", limits: Limits | None = None, trusted: bool = False
) -> Encoder | None: ...


def load_encoder(
    path: Path | None, *, device: str = "auto", limits: Limits | None = None, trusted: bool = False
) -> Encoder | None:
    """The encoder of a file, None for none; see `Encoder`."""
    return None if path is None else Encoder(path, device=device, limits=limits, trusted=trusted)


@lru_cache(maxsize=2)
def _load_again(path: Path, device: str, digest: str, trusted: bool) -> Encoder:
    encoder = Encoder(path, device=device, trusted=trusted)
    if encoder.identity.digest != digest:
        raise ModelError(f"{path}: was changed while it was in use; start the command again")
    return encoder


def _open_session(path: Path, data: bytes | None, device: str) -> Any:
    """A session over bytes, or over the file where weights lie beside it."""
    import onnxruntime

    have = onnxruntime.get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in have:
        raise ConfigError(
            "--device cuda: this ONNX Runtime has no CUDA; install onnxruntime-gpu, or leave it out"
        )
    providers = ["CPUExecutionProvider"]
    if device != "cpu" and "CUDAExecutionProvider" in have:
        providers.insert(0, "CUDAExecutionProvider")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # failures reach us as errors
    options.use_deterministic_compute = True
    options.intra_op_num_threads = _threads()
    try:
        return onnxruntime.InferenceSession(
            str(path) if data is None else data, sess_options=options, providers=providers
        )
    except Exception as error:  # ONNX Runtime's own, by kind of failure; none has a common base
        raise ModelError(
            f"{path}: ONNX Runtime cannot use it ({_first_line(error)}); expected standard"
            " operations only, of a version it knows; export it again"
        ) from error


def _threads() -> int:
    """As many threads as other computing takes here; 0 leaves it to ONNX Runtime."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() else 0


def _metadata(session: Any) -> dict[str, str]:
    found: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    return {key.removeprefix(METADATA): v for key, v in found.items() if key.startswith(METADATA)}


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".yaml")


def _read_spec(path: Path, metadata: Mapping[str, str]) -> EncoderSpec:
    """The preparation by the model's metadata, then by the file beside it."""
    values = {}
    for key, text in metadata.items():
        data = text.encode()
        try:
            values[key] = parse_json(data, nesting=2) if len(data) <= _LONGEST_SETTING else None
        except ValueError:
            values[key] = text  # a name without its quotes
    try:
        spec = build_spec(EncoderSpec, values, source=f"{path}: its metadata")
    except ConfigError as error:
        raise ModelError(str(error)) from error
    sidecar = _sidecar(path)
    if not sidecar.exists():
        return spec
    changed = load_config(EncoderSpec, sidecar)
    both = (one.model_dump(exclude_unset=True) for one in (spec, changed))
    return EncoderSpec(**{key: value for values in both for key, value in values.items()})


def _resize(
    pictures: npt.NDArray[np.uint8], edge: int, how: Image.Resampling
) -> npt.NDArray[np.uint8]:
    """Each picture by Pillow's filter, which averages where it shrinks."""
    out = np.empty((len(pictures), edge, edge, pictures.shape[3]), np.uint8)
    for index, picture in enumerate(pictures):
        image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
        out[index] = np.asarray(image.resize((edge, edge), how)).reshape(edge, edge, -1)
    return out


@contextmanager
def _run_options(seconds: float) -> Iterator[Any]:
    """Options of a run that is ended after some seconds; 0 for never."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    if seconds:
        timer.start()
    try:
        yield options
    finally:
        timer.cancel()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
