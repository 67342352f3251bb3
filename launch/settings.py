"""`launch/tpu.yaml`: which machines, where, and whose. Every key is also a flag of every command, which wins."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError, ValidationError

from janus_jax.config.mistakes import join, problems
from janus_jax.config.section import Section
from janus_jax.config.yaml_file import Node, read_tree
from janus_jax.errors import ConfigError

DEFAULT_FILE = "launch/tpu.yaml"
PLACEHOLDER = "CHANGE-ME"
"""In the file that is shipped: nobody starts with names that are not theirs."""

Text = Annotated[str, Field(min_length=1)]


def _pattern(pattern: str, words: str, **json: Any) -> Any:
    return Field(pattern=pattern, json_schema_extra={"allowed": words, **json})


class Settings(Section):
    """One launch: a slice of TPU chips, or several, and the bucket that its runs write to."""

    name: Annotated[
        str,
        _pattern(r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$", "1 to 40 lower-case letters, digits or hyphens; a letter first"),
    ]
    """Name of the queued resource, and of the run directory in the bucket."""
    project: Text
    """Google Cloud project."""
    zone: Annotated[str, _pattern(r"^[a-z]+-[a-z]+\d+-[a-z]$", "a zone, like us-central2-b")]
    """Zone of the machines."""
    type: Text
    """Accelerator type of a slice, such as v5litepod-16 or v4-32."""
    bucket: Annotated[
        str | None,
        _pattern(r"^gs://[a-z0-9][-_.a-z0-9]{1,61}[a-z0-9](/[^/\s]+)*$", "gs://BUCKET or gs://BUCKET/FOLDER"),
    ] = None
    """Where runs, logs and records of this launch go, in the region of the zone."""
    runtime: Text | None = None
    """TPU software version of the machines. null: the one for the accelerator type."""
    slices: Annotated[int, Field(ge=1)] = 1
    """Number of identical slices, connected by the data centre's network."""
    provisioning: Literal["on-demand", "spot", "reserved"] = "on-demand"
    """spot machines cost less and may be preempted at any time; reserved ones need a reservation of the project."""
    valid_for: Annotated[str | None, _pattern(r"^\d+[smhd]$", "a duration, like 6h or 2d")] = None
    """Give the request up if it is not served within this time. null: wait for ever."""
    service_account: Text | None = None
    """Service account of the machines; it reads and writes the bucket. null: the project's default one."""
    network: Text | None = None
    """VPC network. null: `default`."""
    subnetwork: Text | None = None
    """Subnetwork of that network."""
    internal_ips: bool = False
    """Give the machines no external addresses."""
    iap: bool = False
    """Reach the machines through Identity-Aware Proxy, which works without external addresses."""
    labels: dict[str, str] = Field(
        default_factory=dict,
        json_schema_extra={
            "allowed": "keys and values of lower-case letters, digits, - and _; keys begin with a letter; like team=ml"
        },
    )
    """Labels of the machines, for bills. On the command line: a=b,c=d."""
    python: Text | None = None
    """A Python 3.11 or newer on the hosts that has janus_jax's requirements. null: `setup` makes an environment."""
    offline: bool = False
    """Whether the hosts reach no package index. `setup` then brings everything through the bucket."""
    ssh_key: Text = "~/.ssh/google_compute_engine"
    """Private key for the machines; gcloud makes it if it is missing."""

    @field_validator("labels")
    @classmethod
    def _labels_are_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        for key, value in labels.items():
            if not re.fullmatch(r"[a-z][-_a-z0-9]{0,62}", key) or not re.fullmatch(r"[-_a-z0-9]{0,63}", value):
                raise PydanticCustomError("label", "lower-case letters, digits, - and _; keys begin with a letter")
        return labels


def load(path: str | os.PathLike[str] | None, flags: Mapping[str, str]) -> Settings:
    """Reads the file, and lays the flags over it.

    Args:
        path: of the file; None: `DEFAULT_FILE`, which may be missing if the flags say enough.
        flags: text by key, as on the command line.
    Raises:
        ConfigError: every mistake in one message, each with file:line or flag, the value and what is allowed.
    """
    where = os.fspath(path or DEFAULT_FILE)
    if path is None and not os.path.exists(where):
        root, faults = Node({}, where), []
        absent = [f"{where}: does not exist in {os.getcwd()}; --settings FILE takes another"]
    else:
        (root, faults), absent = read_tree(where), []
    values = dict(root.value)
    for key, text in flags.items():
        values[key] = _of_flag(key, text)
    root = Node(values, where)
    empty = [f"{node.origin}: {key} = {node.value}" for key, node in values.items() if PLACEHOLDER in str(node.value)]
    if empty:
        raise ConfigError(
            join(where, [*faults, *(f"{text}: put your own there; see launch/README.md" for text in empty)])
        )
    try:
        settings = Settings.model_validate(root.plain())
    except ValidationError as error:
        raise ConfigError(join(where, absent + faults + problems(error, root, Settings.model_json_schema()))) from None
    if faults:
        raise ConfigError(join(where, faults))
    return settings


def _of_flag(key: str, text: str) -> Node:
    origin = f"--{key.replace('_', '-')} {text}"
    kind = Settings.model_fields[key].annotation
    value: Any = text
    if kind is int and re.fullmatch(r"\d+", text):
        value = int(text)
    elif kind is bool:
        value = {"true": True, "false": False}.get(text.lower(), text)
    elif key == "labels":
        pairs = [part.partition("=") for part in text.split(",") if part]
        names = [name for name, _, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"{origin}: labels: {twice} is given twice")
        value = {name: Node(label, origin) for name, _, label in pairs}
    elif text == "null":
        value = None
    return Node(value, origin)
