"""AffinityUMamba: the network, the method and its equations."""
