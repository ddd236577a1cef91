"""Generated anatomy: labelled scenes and their images, for training."""
