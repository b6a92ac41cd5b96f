"""Pure losses on taps. `terms.LOSSES` lists every one by name."""
