"""An f32 network as one that computes on integers of 8 bits, by images that it has not been trained on for this."""
