"""Label defects that are made: noise, scribbles, missing labels, and the phantom."""
