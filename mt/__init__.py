"""mt: train, run and judge your own translation models."""

__version__ = "0.1.0"
