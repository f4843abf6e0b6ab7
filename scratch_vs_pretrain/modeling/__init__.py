"""Networks, their initialization and their checkpoints; importing it registers the networks."""

from scratch_vs_pretrain.modeling import backbone  # noqa: F401
