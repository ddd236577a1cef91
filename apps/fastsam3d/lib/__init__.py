"""The app's library: what stands between MONAI Label and the model, and the model itself in `sam`."""
