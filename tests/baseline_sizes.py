"""Baselines so small that a test can train them."""

from llarva.baselines.act import ActSize
from llarva.baselines.checkpoints import NetworkSize
from llarva.baselines.networks import CnnSize, VitSize

SMALL: dict[str, NetworkSize] = {
    "bc_cnn": CnnSize(width=32, blocks=1),
    "bc_vit": VitSize(width=32, layers=1, heads=2, mlp_width=48),
    "act": ActSize(width=32, encoder_layers=1, posterior_layers=1, heads=2, mlp_width=48, latent=4),
}
KINDS = list(SMALL)
