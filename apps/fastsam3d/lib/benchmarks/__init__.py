"""A whole click over HTTP beside a stock MONAI Label pipeline of the same network."""

WAYS_BACK = ("inverse", "resize")
"""How the stock pipelines come back to the scan's grid, see stock_pipeline.py."""
