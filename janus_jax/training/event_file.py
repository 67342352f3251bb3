"""TensorBoard's event file, written without TensorFlow, and without a library that imports torch where it is installed.

Two libraries write such files. tensorboardX 2.6.5 imports torch where it is installed: 2.9 CPU seconds until the first
value is written, on a busy machine. Its thread handles no error of the file, so the run would go on without the values.
The writer of the package tensorboard imports TensorFlow where that is installed, as it is here: 11.8 CPU seconds there.

The file is TFRecord: of each event its length, a checksum of that, the event and its checksum. An event is the protocol
buffer `Event` of TensorBoard; its fields are named below.
"""

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import google_crc32c
import numpy as np

from janus_jax.storage.bucket import os_errors

_VERSION = "brain.Event:2"
_START = 1  # of SessionLog: readers drop what earlier files hold from this step on


class EventFile:
    """A new event file in a directory, which is created if needed. What was written survives a kill of the process.

    Args:
        first_step: the first step that this process writes, if it goes on after an earlier one; else 0.
    Raises:
        StorageError: the file cannot be written; so do all methods.
    """

    def __init__(self, directory: Path, first_step: int = 0):
        self._path = directory / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        with os_errors(self._path):
            directory.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("xb")
        self._event(_bytes(3, _VERSION.encode()))
        self._event(_int(2, first_step) + _bytes(7, _int(1, _START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values under their names; what float32 cannot hold becomes infinite."""
        with np.errstate(over="ignore"):
            self._summary(step, [_bytes(1, name.encode()) + _float(2, value) for name, value in values.items()])

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text under a name, as the tensor of one string that TensorBoard's plugin for texts reads."""
        plugin = _bytes(1, _bytes(1, b"text"))
        tensor = _int(1, 7) + _bytes(2, _bytes(2, _int(1, 1))) + _bytes(8, markdown.encode())  # DT_STRING, shape [1]
        self._summary(step, [_bytes(1, f"{name}/text_summary".encode()) + _bytes(9, plugin) + _bytes(8, tensor)])

    def close(self) -> None:
        """Nothing can be written any more."""
        with os_errors(self._path):
            self._file.close()

    def _summary(self, step: int, values: list[bytes]) -> None:
        self._event(_int(2, step) + _bytes(5, b"".join(_bytes(1, value) for value in values)))

    def _event(self, fields: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + fields  # field 1: when
        length = struct.pack("<Q", len(event))
        with os_errors(self._path):
            self._file.write(length + _checksum(length) + event + _checksum(event))
            self._file.flush()


def ends_of_events(content: bytes) -> list[int]:
    """Where the events of an event file end."""
    ends, at = [], 0
    while at + 8 <= len(content) and (end := at + 16 + int.from_bytes(content[at : at + 8], "little")) <= len(content):
        ends.append(at := end)
    return ends


def _checksum(content: bytes) -> bytes:
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + np.float32(value).tobytes()


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
