"""The networks, in plain PyTorch; `build.py` puts them together."""
