"""The network as a graph: which channels belong together, what they cost, how they are cut."""
