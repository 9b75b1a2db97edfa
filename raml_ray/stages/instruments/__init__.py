"""Stages' own instruments: what `analyze` can measure along trajectories, one file each, chosen by analyze.instrument."""
