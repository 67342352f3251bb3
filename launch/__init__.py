"""From a workstation to training on Cloud TPU VMs, and back after every preemption: `python -m launch --help`.

Runs on the workstation with the standard library, PyYAML and pydantic; imports neither JAX nor TensorFlow. `host/` is
the part that runs on the machines.
"""
