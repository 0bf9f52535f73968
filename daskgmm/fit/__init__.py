"""The algorithms, written with map, reduce and update."""
