"""A Dockerfile of the checkout, for the pods of a JobSet and for xpk."""

_TEXT = """\
# Image of this checkout, with the versions of constraints-py311.txt and libtpu. Not built by the tests.
#   docker build -t IMAGE -f Dockerfile .      (in the checkout)
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/janus
COPY LICENSE NOTICE README.md pyproject.toml constraints-py311.txt ./
COPY janus_jax janus_jax
RUN pip install --constraint constraints-py311.txt --editable '.[tpu]'
COPY configs configs
CMD ["janus", "doctor"]
"""


def text() -> str:
    """The file."""
    return _TEXT
