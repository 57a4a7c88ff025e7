"""General operators: local windows, attention as a similarity, deformable convolution."""
