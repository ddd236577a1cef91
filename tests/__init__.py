"""Tests mirror apps/fastsam3d/lib; app/ and clients/ use the real server over HTTP."""
