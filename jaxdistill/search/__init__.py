"""Searches over students: which candidates to try next, from those that were tried."""
