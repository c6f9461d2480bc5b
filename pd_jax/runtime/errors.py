"""Errors whose message is all that a person sees."""


class Refused(ValueError):
    """What a person gave cannot work; the message tells them why, and what can."""


class NotFinite(ArithmeticError):
    """Computed numbers are not finite; the message says which and how many."""
