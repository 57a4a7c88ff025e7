"""Studies: comparisons of methods, seeds and folds that run as real command lines and write their own tables."""
