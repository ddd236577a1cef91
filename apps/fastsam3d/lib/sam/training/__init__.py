"""Pretraining on generated anatomy and labelled scans."""
