"""AffinityUMamba: the network of two decoders, and U-Mamba, on which it is built."""

from __future__ import annotations
