"""Training by several processes at once (`torchrun`): who is which, and what they tell each other.

A batch is shared out. Every rank draws and prepares the same whole batch, then keeps each count-th
sample of it. Losses are sums over the share divided by counts of the whole batch, gradients are
added up, batch norm takes the whole batch's statistics (`shared_norm.py`): the ranks compute what
one process computes, up to rounding. Only the first rank writes files.
"""

import gc
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined] # no stub
from torch.nn.parallel import DistributedDataParallel

from esad_med.base.errors import ConfigError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.runs import digest_bytes
from esad_med.method.devices import choose_device
from esad_med.method.losses import Target
from esad_med.method.networks import EsadOutput

_PATIENCE = timedelta(minutes=30)  # with ranks that are slow to start, as torch has it


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; by default alone.

    Attributes:
        device: where this process computes.
        rank: which one it is, 0 ... count - 1.
        count: how many there are.
        store: what `torchrun` remembers for them, None without it.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    store: Store | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Which samples of a batch are this rank's; of each kind as many as any other's, ± 1."""
        return slice(self.rank, None, self.count)

    def share_batch(self, x: Tensor, target: Target) -> tuple[Tensor, Target]:
        """This rank's share of a prepared batch; the target remembers the labels of all."""
        if self.count == 1:
            return x, target
        own = Target(target.x[self.share].clone(), target.y[self.share], whole=target.y)
        return x[self.share].clone(), own

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as it is trained: its gradients become the sum over all ranks."""
        if self.count == 1:
            return network
        wrapped = DistributedDataParallel(
            _WithUnused(network),
            device_ids=[self.device] if self.device.type == "cuda" else None,
            forward_sync_buffers=False,  # batch norm's are the same everywhere
            find_unused_parameters=True,
        )
        wrapped.register_comm_hook(None, _add_up)
        return wrapped

    def add(self, values: Tensor) -> Tensor:
        """The sum over all ranks, the same to the last bit on each."""
        if self.count == 1:
            return values
        total = values.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(values.device)

    def from_first(self, data: bytes | None) -> bytes | None:
        """What the first rank holds, on every rank; the others' own is not looked at."""
        if self.count == 1:
            return data
        size = torch.tensor([-1 if data is None else len(data)], device=self.device)
        dist.broadcast(size, 0)
        if int(size) < 0:
            return None
        content = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if self.is_first:
            assert data is not None
            content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(content, 0)
        return content.cpu().numpy().tobytes()

    def wait(self) -> None:
        """Go on when all ranks have come here."""
        self.add(torch.zeros(1))

    def note(self, what: str) -> None:
        """Remember that something was begun, over restarts by `torchrun`."""
        if self.store is not None:
            self.store.set(what, "")

    def has_noted(self, what: str) -> bool:
        """Whether `note` was called, by this start or one before."""
        return self.store is not None and bool(self.store.check([what]))

    def check_alike(self, values: Mapping[str, str]) -> None:
        """Refuse ranks that would train something else than the first one.

        Args:
            values: what has to be equal, by its name in the message.

        Raises:
            ConfigError: saying what differs.
        """
        for name, value in values.items():
            own = digest_bytes(value.encode()).encode()
            if self.from_first(own) != own:
                raise ConfigError(
                    f"rank {self.rank}: {name} differ from the first rank's; start every machine"
                    " with the same command, versions and a copy of the same store"
                )


class _WithUnused(nn.Module):
    """A network beside a parameter that nothing uses: DDP, asked to look for one, finds one.

    DDP lays its buckets out anew after the first step unless it looks for unused parameters. A
    training that is resumed would then add gradients in another order than one that is not.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.unused = nn.Parameter(torch.zeros(1, device=next(network.parameters()).device))

    def forward(self, x: Tensor) -> EsadOutput:
        """Run the network."""
        output: EsadOutput = self.network(x)
        return output


def _add_up(
    _: object,
    bucket: dist.GradBucket,  # type: ignore[name-defined] # not in its stub; DDP wants to see it
) -> torch.futures.Future[Tensor]:
    """DDP's own hook takes the mean; losses of shares are parts of a sum."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


@contextmanager
def open_ranks(device: str) -> Iterator[Ranks]:
    """Join the processes that `torchrun` started; alone where there are no others.

    NCCL carries what is said on CUDA, where each rank has the device of its local number, gloo on
    the CPU. Its threads have ended when this is left without an error; after one, `leave_at_once`.

    Raises:
        ConfigError: more ranks on this machine than CUDA devices, or another rank was lost.
        KeyboardInterrupt: the others were interrupted, and so was this one.
    """
    chosen, store = choose_device(device), _agent_store(_PATIENCE)
    count = int(os.environ["WORLD_SIZE"]) if store else 1
    if store is None or count == 1:
        yield Ranks(chosen, store=store)
        return
    if chosen.type == "cuda":
        chosen = _own_device()
    rank = int(os.environ["RANK"])
    # DDP would load it later, and then its functions' default arguments keep the group forever
    import_module("torch.distributed.nn")
    try:
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            store=PrefixStore(_agree_on_attempt(store, rank, count), store),
            rank=rank,
            world_size=count,
        )
        yield Ranks(chosen, rank, count, store)
    except RuntimeError as error:
        if not _tells_of_a_lost_rank(error):
            raise
        raise_if_interrupted()
        raise ConfigError(
            "another rank was lost, and a batch cannot be finished without it; `torchrun"
            " --max-restarts` goes on from the last epoch by itself, --resume does when started"
            " again"
        ) from error
    # not after an error: it would wait for ranks that are gone
    dist.destroy_process_group()
    gc.collect()  # the network, whose cycles hold the group, and the group joins its threads


def _agent_store(patience: timedelta) -> Store | None:
    """What `torchrun` remembers for its ranks, over restarts too; None without `torchrun`."""
    if not launched():
        return None
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=not hosted and os.environ["RANK"] == "0",
        timeout=patience,
        multi_tenant=True,
    )
    return PrefixStore("esad-med", store)


def _agree_on_attempt(store: Store, rank: int, count: int) -> str:
    """A name that the ranks of this start share, and no rank of a start before.

    `torchrun` keeps its store over restarts. Ranks that meet under the name of a former start read
    the addresses of dead ones, and wait for them. So each rank names itself anew, and the first
    answers until every one has heard it.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"rank {rank}", own)
        attempt: str = store.get(f"answer to {own}").decode()
        store.set(f"{attempt} heard by {rank}", "")
        return attempt
    missing, deadline = set(range(1, count)), time.monotonic() + _PATIENCE.total_seconds()
    while missing:
        for other in [other for other in missing if store.check([f"rank {other}"])]:
            store.set(f"answer to {store.get(f'rank {other}').decode()}", own)
        missing = {other for other in missing if not store.check([f"{own} heard by {other}"])}
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"ranks {sorted(missing)} did not come")
        time.sleep(0.02)
    return own


def _own_device() -> torch.device:
    local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= found:
        raise ConfigError(
            f"rank {local} of this machine has no CUDA device: {found} found; start torchrun with"
            f" --nproc-per-node {found}"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _tells_of_a_lost_rank(error: RuntimeError) -> bool:
    """Errors of gloo have no class of their own, but name its files."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def launched() -> bool:
    """Whether `torchrun` started this process."""
    return dist.is_torchelastic_launched()


def is_first_process() -> bool:
    """Whether this process speaks for all that `torchrun` started."""
    return not launched() or os.environ.get("RANK", "0") == "0"


def leave_at_once(code: int) -> NoReturn:
    """End a rank that failed, without taking Python down around the threads of gloo.

    They may hold tensors of a sum that was never finished, and a thread that gives one back to an
    interpreter that is going kills the process: SIGABRT instead of the exit code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def first_to_fail() -> bool:
    """Whether no other rank has said yet what went wrong; asked once, by a rank that fails.

    The ranks need not have joined: `torchrun` keeps a store for them from the start.
    """
    try:
        store = _agent_store(timedelta(seconds=10))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store is None or bool(store.add(f"failed {attempt}", 1) == 1)
    except (RuntimeError, KeyError, ValueError):
        return True  # better said twice than not at all
