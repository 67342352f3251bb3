"""Which kernel computes attention: the platform of the mesh's devices names candidates, the first that can be is taken.

The devices may be none of this host: a plan compiles for others. A kernel that is to run here must first give what
plain JAX gives, on one device of each process.
"""

from collections.abc import Callable

import jax

from janus_jax.errors import ConfigError
from janus_jax.model.kernels import Kernel, Need, cudnn, proof, splash, triton
from janus_jax.parallel import processes
from janus_jax.parallel.mesh import Placement

Candidate = tuple[Kernel, str] | str
"""A kernel and what a user reads of it, or why it cannot be."""


def _splash(need: Need) -> Candidate:
    interpret = need.place.platform != "tpu"
    how = "splash kernel, interpreted" if interpret else "splash kernel"
    copied = f"{how}, {need.copies:,} copies of shared prompt slots"
    kernel = splash.Splash(need.copies, interpret), copied if need.copies else how
    return splash.unsupported_reason(need) or kernel


def _cudnn(need: Need) -> Candidate:
    kernel = cudnn.Cudnn(need.copies, need.segments * need.branches, need.longest)
    return cudnn.unsupported_reason(need) or (kernel, "cuDNN kernel")


def _triton(need: Need) -> Candidate:
    interpret = need.place.platform not in ("gpu", "cuda")
    kernel = triton.Triton(interpret=interpret), "Triton kernel, interpreted" if interpret else "Triton kernel"
    return triton.unsupported_reason(need) or kernel


_KERNELS: dict[str, Callable[[Need], Candidate]] = {"splash": _splash, "cudnn": _cudnn, "triton": _triton}

_CANDIDATES = {"tpu": ("splash",), "gpu": ("cudnn", "triton"), "cuda": ("cudnn", "triton")}
"""Platform -> kernels, best first. On other platforms attention is plain JAX."""

_COUNTS = {"splash": ("copies",), "cudnn": ("copies", "segments")}
"""What a kernel must know of the rows of a run, which takes reading their lengths."""


def counts(limit: str, wanted: str, place: Placement) -> bool:
    """Whether a limit of the rows, `copies` or `segments`, is used.

    Args:
        wanted: `precision.attention`.
    """
    return any(limit in _COUNTS.get(name, ()) for name in _candidates(wanted, place))


def candidate(name: str, need: Need) -> Candidate:
    """The kernel of this name and what a user reads of it, or why it cannot be; not compared with plain JAX."""
    return _KERNELS[name](need)


def choose(wanted: str, need: Need) -> tuple[Kernel | None, str]:
    """The kernel, None for plain JAX, and a line for the user that says what was chosen and why.

    Args:
        wanted: `precision.attention`.
    Raises:
        ConfigError: a kernel is named that cannot be, or that gives other numbers than plain JAX.
    """
    candidates, reasons = _candidates(wanted, need.place), []
    for name in candidates:
        proven = _proven(name, need)
        if not isinstance(proven, str):
            kernel, how = proven
            return kernel, f"{how} ({'; '.join(reasons)})" if reasons else how
        if wanted == name:
            raise ConfigError(f"precision.attention={name}: cannot be: {proven}; allowed: auto, reference")
        reasons.append(f"{name}: {proven}" if len(candidates) > 1 else proven)
    if not candidates:
        reasons = ["precision.attention" if wanted == "reference" else f"devices are {need.place.platform}"]
    return None, f"plain JAX ({'; '.join(reasons)})"


def _candidates(wanted: str, place: Placement) -> tuple[str, ...]:
    if wanted == "auto":
        return _CANDIDATES.get(place.platform or "", ())
    return () if wanted == "reference" else (wanted,)


def _proven(name: str, need: Need) -> Candidate:
    """The candidate, unless it gives other numbers than plain JAX where it is to run. All processes agree."""
    made, mesh = candidate(name, need), need.place.mesh
    if isinstance(made, str) or mesh is None or need.place.platform == "cpu":
        return made
    here = [device for device in jax.local_devices() if device in set(mesh.devices.flat)]
    if not here:
        return made  # a plan for other devices
    try:
        with processes.agreement(f"attention/{name}"):
            reason = proof.failure(made[0], proof.on_a_device(need), here[0])
            if reason is not None:
                raise ConfigError(reason)
    except ConfigError as error:
        return str(error)
    return made
