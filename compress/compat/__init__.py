"""Other programs' interfaces, on kerf's parts."""
