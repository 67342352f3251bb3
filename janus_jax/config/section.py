"""The base of all sections of a configuration."""

from pydantic import BaseModel, ConfigDict

SIZE = r"^([0-9]*[1-9][0-9]*(\.[0-9]+)?[KMGT]?B|0+\.[0-9]{0,2}[1-9][0-9]*[KMGT]B)$"
"""A file size of at least one byte, such as 5GB."""


class Section(BaseModel):
    """A part of the configuration: frozen, no unknown keys, no conversion of text into numbers or switches."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )
