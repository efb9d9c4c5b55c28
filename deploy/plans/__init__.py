"""How a network runs: which engine has which piece, and the steps of a bundle that say so."""
