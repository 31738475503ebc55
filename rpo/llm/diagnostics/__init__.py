"""What happens to the policy in training: displacement, gradients set against one another, the KL to the reference."""

from rpo.llm.diagnostics.displacement import displacement, displacement_values
from rpo.llm.diagnostics.gradients import gradient_entanglement, is_sharded, split_gradients
from rpo.llm.diagnostics.kl import SampledKL, measure_kl, prefix_kl, sampled_kl

__all__ = [
    "SampledKL",
    "displacement",
    "displacement_values",
    "gradient_entanglement",
    "is_sharded",
    "measure_kl",
    "prefix_kl",
    "sampled_kl",
    "split_gradients",
]
