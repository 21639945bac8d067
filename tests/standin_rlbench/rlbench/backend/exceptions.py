"""Exceptions under RLBench's names."""


class BoundaryError(Exception):
    pass


class InvalidActionError(Exception):
    pass


class TaskEnvironmentError(Exception):
    pass
