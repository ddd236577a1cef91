"""Promptable 3D segmentation of scans: files, geometry, networks, weights and training, without MONAI Label."""
