"""Before a slice is paid for: compile a recipe for it on a machine that has none, and say what it
needs and costs."""
