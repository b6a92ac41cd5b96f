"""The published methods, one file each: functions from a stage's settings to its `Objective`.
`kinds.KINDS` lists them by name; `register` adds one from a user's own file."""

from jaxdistill.methods.kinds import register

__all__ = ["register"]
