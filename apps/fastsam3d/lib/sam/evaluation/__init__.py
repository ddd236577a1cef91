"""Measuring promptable models on labelled scans: the same clicks for all, the same scan reading as serving."""
