"""Resources: what assets, checks and sensors work with."""
