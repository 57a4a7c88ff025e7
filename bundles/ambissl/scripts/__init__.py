"""AmbiSSL: network, losses and method."""
