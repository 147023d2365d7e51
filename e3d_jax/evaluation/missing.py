"""Scores that cannot be given."""


class NotScored(ValueError):
    """A metric has no score: something is not installed, or not defined for this prediction. The message says which.

    The other scores are still given.
    """
