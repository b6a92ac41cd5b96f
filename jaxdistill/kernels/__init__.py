"""The same mathematics with less memory. Knows nothing of models; each is tested against plain
reverse mode."""
