"""What is measured of a trained network: feature maps, moments, curvature, relevance."""
