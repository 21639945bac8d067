"""Stand-in for RLBench on the workbench's own physics."""

__version__ = "1.2.0"
