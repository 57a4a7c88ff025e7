"""Parts shared by the bundles: the training loop, data contract, metrics, networks and operators."""
