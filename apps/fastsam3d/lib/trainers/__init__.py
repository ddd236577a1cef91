"""MONAI Label's training tasks: thin over lib/sam/training."""
