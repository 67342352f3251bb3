"""What a bucket says of an object, and what it should say of a content."""

import base64
import dataclasses
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Object:
    """One object, as in a listing."""

    name: str  # below the URL that was listed
    size: int
    crc32c: str  # big-endian, base64, as the service writes it
    generation: int  # changes with every write
    updated_s: float = dataclasses.field(default=0.0, compare=False, repr=False)  # when, by the service's own clock

    def same_content(self, other: "Object") -> bool:
        """Whether sizes and checksums are equal."""
        return (self.size, self.crc32c) == (other.size, other.crc32c)


def object_of(name: str, content: bytes) -> Object:
    """The listing's entry for this content, without a generation."""
    import google_crc32c

    return Object(name, len(content), _base64(google_crc32c.Checksum(content)), 0)


def object_of_file(name: str, path: Path) -> Object:
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
        return Object(name, file.tell(), _base64(checksum), 0)


def _base64(checksum: Any) -> str:
    return base64.b64encode(checksum.digest()).decode()
