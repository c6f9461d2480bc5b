"""The error for what a person gave: its message is all that they see."""


class Refused(ValueError):
    """What a person gave cannot work; the message tells them why, and what can."""
