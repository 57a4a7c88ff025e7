"""MultiCURE: two networks, the uncertainty of one and the contrast of features, and its equations."""
