"""The same mathematics with less memory. Knows nothing of models; every kernel has a plain reference in its test."""
