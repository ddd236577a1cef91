"""MONAI Label's inference tasks over the library."""
