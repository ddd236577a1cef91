"""The commands of `python apps/fastsam3d`, one file each."""
