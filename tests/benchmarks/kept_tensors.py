"""What of the forward pass the backward pass repeats: MaxText's remat policies beside lists that the search finds.

    python -m tests.benchmarks.kept_tensors [CONFIG [SLICE ...]]     # arithmetic of the planner, a few seconds

On each slice, the policy and the list that fit by estimate and repeat least. A policy is taken as the list of our
tensors that it keeps, in our step. Policies of MaxText 0.2.5 that keep the same of our tensors share a line.
"""

import dataclasses
import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from janus_jax.config.changes import changed
from janus_jax.config.run import load_config
from janus_jax.model.remat import as_text, in_order
from janus_jax.planning.bounds import workload
from janus_jax.planning.chips import roofline
from janus_jax.planning.chips.slices import find_slice, load_chips
from janus_jax.planning.inputs import find_inputs
from janus_jax.planning.search.estimate import choices_of_kept, estimate

_INPUTS = ("query", "key", "value")
POLICIES = {
    "full": (),
    "save_out_proj": ("projection",),
    "save_qkv_proj": _INPUTS,
    "save_dot_except_mlp, save_dot_except_mlpwi": (*_INPUTS, "projection"),
    "save_dot_with_context_except_mlp": (*_INPUTS, "attention", "projection"),
    "minimal": (*_INPUTS, "projection", "gate", "up"),
    "minimal_with_context": (*_INPUTS, "attention", "projection", "gate", "up"),
}


SLICES = ("v5litepod-16", "v6e-8", "v6e-16", "v4-32", "v5p-8", "v5p-16")
ROOM = 1.03
"""The memory of a device over the most that a step may need by estimate, as in the search."""


def main(name: str = "configs/sft_65k.yaml", *topologies: str) -> None:
    config = load_config(name, [])
    table = Table("slice", "usable GiB", "policy", "GiB", "repeats", "list", "GiB", "repeats")
    for topology in topologies or SLICES:
        target = find_slice(topology)
        usable = load_chips().chips[target.family].usable_hbm_bytes_per_device or 0
        inputs = find_inputs(config, target.devices)
        work = dataclasses.replace(workload(config, inputs), rows=1, microbatches=1)
        policies = []
        for policy, names in POLICIES.items():
            remat = in_order(names)
            flops = roofline.training_flops(dataclasses.replace(work, recompute=roofline.recompute(remat)))
            needed = estimate(changed(config, {"remat": remat}), target).bytes
            policies.append((policy, needed, flops.recomputed / roofline.forward_flops(work).total))
        lists = [
            (as_text(choice.remat), choice.bytes, choice.repeated)
            for choice in choices_of_kept(config, target, inputs=inputs)
        ]
        cells = [topology, f"{usable / 2**30:.2f}"]
        for choices in (policies, lists):
            fitting = [choice for choice in choices if choice[1] * ROOM <= usable]
            label, needed, share = min(fitting, key=lambda choice: choice[2]) if fitting else ("none fits", 0, 0.0)
            cells += [escape(label), f"{needed / 2**30:.1f}", f"{share:.0%}"]
        table.add_row(*cells)
    Console(width=160).print(table)


if __name__ == "__main__":
    main(*sys.argv[1:])
