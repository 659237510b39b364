"""`NodeConfig`: every name, limit and timeout of the DICOM node, and whom it may talk to."""

import ipaddress
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from esad_med.base.config import Spec
from esad_med.base.errors import ConfigError

_AE_TITLE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")  # PS3.5 6.2, VR AE: no backslash


@dataclass(frozen=True)
class Peer:
    """The DICOM node that results are sent to."""

    ae_title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Peer":
        """Read ``AET@host:port``.

        Raises:
            ValueError: another form, an impossible AE title or port.
        """
        ae_title, at, address = text.partition("@")
        host, colon, port = address.rpartition(":")
        if not (at and colon and host and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError("expected AET@host:port, such as PACS@10.0.0.5:104")
        return cls(_checked_title(ae_title), host.strip("[]"), int(port))


class NodeConfig(Spec):
    """How the node listens, what it refuses, when it triages, and where results go."""

    ae_title: str = Field("ESAD", description="The node's own AE title.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(11112, ge=0, le=65535, description="TCP port; 0 takes any free one.")
    allow: tuple[str, ...] = Field(
        (), description="Calling AE titles that may connect; none given: any, on loopback only."
    )
    allow_any_caller: bool = Field(
        False, description="Listen beyond loopback without a list of calling AE titles."
    )
    require_called_ae: bool = Field(
        True, description="Refuse associations that call another AE title than ours."
    )
    peer: str | None = Field(None, description="Where results are sent, AET@host:port.")
    peer_tls: bool | None = Field(
        None, description="TLS towards the peer; null: as the node itself, with or without."
    )
    tls_cert: Path | None = Field(None, description="Our certificate chain, PEM; turns TLS on.")
    tls_key: Path | None = Field(None, description="The key of our certificate, PEM.")
    tls_ca: Path | None = Field(
        None, description="CA certificates, PEM; callers must show a certificate of theirs."
    )
    tls_check_hostname: bool = Field(
        True, description="The peer's certificate must name the host that is called."
    )
    quiet_seconds: float = Field(
        30.0, ge=0, description="A study is complete when no image came for this long."
    )
    maximum_associations: int = Field(50, ge=1, description="Open associations at a time.")
    maximum_pending: int = Field(
        50, ge=1, description="Connections that have not asked for an association; oldest go first."
    )
    acse_timeout: float = Field(
        5.0, gt=0, description="Seconds to ask for an association after connecting."
    )
    dimse_timeout: float = Field(30.0, gt=0, description="Seconds to wait for the peer's answer.")
    network_timeout: float = Field(
        30.0, gt=0, description="Seconds an association may be idle, or one PDU may take."
    )
    maximum_pdu: int = Field(131072, ge=4096, le=1 << 24, description="Bytes of one PDU.")
    maximum_object_mib: float = Field(128.0, gt=0, description="MiB of one image.")
    maximum_memory_mib: float = Field(
        1024.0, gt=0, description="MiB of all images being received together."
    )
    maximum_images: int = Field(200, ge=1, description="Images of one study.")
    reserve_mib: float = Field(
        1024.0, ge=0, description="MiB of the disk that stay free: below it images are refused."
    )
    maximum_attempts: int = Field(
        3, ge=1, description="Triages of a study that end with the process before it is set aside."
    )
    retry_seconds: float = Field(10.0, gt=0, description="Wait after the first failed sending.")
    retry_cap_seconds: float = Field(
        900.0, gt=0, description="Waits double with every failure, up to this."
    )
    retention_days: float = Field(
        30.0, ge=0, description="Days that triaged studies and sent results are kept."
    )
    set_aside_days: float | None = Field(
        None, ge=0, description="Days that studies set aside are kept; null: until removed by hand."
    )
    watch_seconds: float = Field(
        2.0, gt=0, description="A watched file is taken when its size was stable for this long."
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="TCP port for Prometheus; null: none; 0 any free one."
    )
    metrics_host: str = Field(
        "127.0.0.1", description="Address for Prometheus; whoever reaches it may read counts."
    )
    stop_seconds: float = Field(
        4.0, ge=0, description="How long a stop waits for stores and the triage under way."
    )

    @field_validator("ae_title")
    @classmethod
    def _own_title(cls, value: str) -> str:
        return _checked_title(value)

    @field_validator("allow")
    @classmethod
    def _titles(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_checked_title(value) for value in values)

    @field_validator("peer")
    @classmethod
    def _peer_form(cls, value: str | None) -> str | None:
        if value is not None:
            Peer.parse(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("TLS needs tls_cert and tls_key; give both or neither")
        if self.tls_ca is not None and self.tls_cert is None:
            raise ValueError("tls_ca without tls_cert and tls_key checks nothing; give all three")
        if self.peer_tls and self.tls_cert is None:
            raise ValueError("peer_tls needs tls_cert and tls_key")
        if not (self.allow or self.allow_any_caller or _is_loopback(self.host)):
            raise ValueError(
                f"host {self.host} can be reached by others, and no calling AE title is allowed;"
                " name the callers with --allow, or set allow_any_caller=true"
            )
        return self

    @property
    def destination(self) -> Peer | None:
        """The peer, taken apart."""
        return None if self.peer is None else Peer.parse(self.peer)

    @property
    def maximum_object(self) -> int:
        """Bytes of one image."""
        return int(self.maximum_object_mib * 2**20)

    @property
    def reserve(self) -> int:
        """Bytes of the disk that stay free."""
        return int(self.reserve_mib * 2**20)


def server_tls(config: NodeConfig) -> ssl.SSLContext | None:
    """TLS for callers: they must show a certificate where a CA is given; None without TLS.

    Raises:
        ConfigError: a file is missing, or certificate and key do not belong together.
    """
    if config.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, config)
    if config.tls_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_tls(config: NodeConfig) -> ssl.SSLContext | None:
    """TLS towards the peer, which must show a certificate of the CA (the system's without one).

    Raises:
        ConfigError: a file is missing, or certificate and key do not belong together.
    """
    wanted = config.tls_cert is not None if config.peer_tls is None else config.peer_tls
    if not wanted:
        return None
    context = ssl.create_default_context() if config.tls_ca is None else _bare_client()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = config.tls_check_hostname
    _load(context, config)
    return context


def _bare_client() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody until a CA is loaded


def _load(context: ssl.SSLContext, config: NodeConfig) -> None:
    assert config.tls_cert is not None
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key, password=_no_password)
        if config.tls_ca is not None:
            context.load_verify_locations(config.tls_ca)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"TLS: certificate, key or CA cannot be used ({reason}); expected PEM files that"
            " belong together, the key without a password"
        ) from error


def _no_password() -> str:
    raise ValueError("the key is protected by a password")  # instead of asking a terminal


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _checked_title(value: str) -> str:
    title = value.strip()
    if not _AE_TITLE.fullmatch(title):
        raise ValueError("an AE title has 1 to 16 ASCII characters without backslash")
    return title
