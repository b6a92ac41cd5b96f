"""The published methods, one file each: functions from a stage's settings to its `Objective`.
`kinds.KINDS` lists them by name."""
