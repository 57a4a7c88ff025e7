"""AttenScribble: the method, its losses, its network and the reading of scribbles."""
